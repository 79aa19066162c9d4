//! Memory that costs nothing while no output flows.
//!
//! A shim lives as long as its service and mostly has nothing to write. Its
//! buffers are a private mapping: pages of it exist once they are touched, and
//! are given back when the output has paused (see mmap(2), madvise(2)).
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};

/// Bytes used where the kernel gives no mapping.
const SMALL: usize = 256 * 1024;

/// A fixed area of zeroed bytes, made of pages only where it was written to.
#[derive(Debug)]
pub(super) enum Buffer {
    Mapped(Mapping),
    /// The kernel refused (ENOMEM): little memory, from the heap.
    Heap(Box<[u8]>),
}

/// A private anonymous mapping, owned by this value alone.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Buffer {
    /// An area of `length` bytes, or a smaller one where memory is short.
    pub(super) fn new(length: usize) -> Self {
        match Mapping::new(length) {
            Ok(mapping) => Self::Mapped(mapping),
            Err(_) => Self::Heap(vec![0; length.min(SMALL)].into()),
        }
    }

    /// Gives the pages back. What was in them reads as zeros.
    pub(super) fn release(&mut self) {
        if let Self::Mapped(mapping) = self {
            // SAFETY: the range is this mapping, nothing borrows from it (`&mut
            // self`), and zeros are as good a content as any. A failure changes nothing.
            unsafe { libc::madvise(mapping.start.cast(), mapping.length, libc::MADV_DONTNEED) };
        }
    }
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // overlaps no other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by this value, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: `length` readable, initialised (zero or written) bytes, that live as
            // long as the mapping and change only through `&mut self`.
            Self::Mapped(map) => unsafe { std::slice::from_raw_parts(map.start, map.length) },
            Self::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
            Self::Mapped(map) => unsafe { std::slice::from_raw_parts_mut(map.start, map.length) },
            Self::Heap(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_reads_as_zeros_and_can_be_used_again() {
        let mut buffer = Buffer::new(1 << 20);
        buffer.fill(7);
        buffer.release();
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer[99] = 1;
        assert_eq!(buffer[99], 1);
    }
}
