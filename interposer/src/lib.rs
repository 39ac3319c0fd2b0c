//! A library that is preloaded into workloads (`LD_PRELOAD`), and serves their bulk device memory from handles of the virtual
//! memory API (CUDA driver API, `cuMemCreate` and its like) in place of the driver's own allocations. What `cudaMalloc` and
//! `cuMemAlloc` return is then memory that can be handed to another process: so the agent copies it at the speed of the bus
//! while the workload is captured and restored, and the driver's own checkpoint holds only what is left.
//!
//! Calls reach it however a program finds the driver: by linking it, by `dlsym`, or by `cuGetProcAddress`, as CUDA's runtime
//! does. A process that does not use CUDA has nothing of it but a look at the names that it asks `dlsym` for.
//!
//! Prior art of the split: GCR (FAST 2026) and gpu-os/GPU-CR.

#![allow(unsafe_code)]
#![allow(non_snake_case, reason = "functions have the names that they stand before")]
// SAFETY (of every block below): functions of the driver are called with what the workload gave for them, or with handles and
// addresses that this library got from the driver and has in its table; out parameters are of the driver's types (cuda.h, 12.0
// to 13.5) and live as long as the call.
#![allow(clippy::undocumented_unsafe_blocks)]

mod control;
mod driver;
mod hazards;
mod memory;
mod nccl;
mod peers;
mod symbols;
