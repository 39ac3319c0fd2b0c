//! Objects written and read, whole, damaged and hostile.

mod damaged;
mod hostile;
mod image;
mod object;
mod staging;
mod whole;
