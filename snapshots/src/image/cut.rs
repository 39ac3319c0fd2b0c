//! Where the content of an image is cut into leaves: by what it holds, so that what two images share is cut alike in both,
//! wherever it lies. FastCDC with normalised chunking: Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems" (IEEE TPDS, 2020).

use fastcdc::v2020::FastCDC;

use crate::leaf::LEAF_BYTES;

const MIN_BYTES: usize = LEAF_BYTES / 8;
const AVERAGE_BYTES: usize = LEAF_BYTES / 2;

/// Length of the leaf that `content` begins with; `content` has at least [`LEAF_BYTES`], or ends the image.
#[must_use]
pub fn first_leaf_bytes(content: &[u8]) -> usize {
    let window = &content[..content.len().min(LEAF_BYTES)];
    if window.len() <= MIN_BYTES {
        return window.len();
    }
    FastCDC::new(window, MIN_BYTES, AVERAGE_BYTES, LEAF_BYTES).cut(0, window.len()).1
}
