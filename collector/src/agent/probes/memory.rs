//! Maps of the kernel as memory of this process, so that reading them needs no system call. Knows sizes, not
//! meanings.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// The elements of an array map, shared with the kernel's programs.
#[derive(Debug)]
pub struct Shared<T> {
    memory: NonNull<u8>,
    elements: u32,
    bytes: usize,
    element: PhantomData<T>,
}

// SAFETY: the memory is shared with other threads of execution (the kernel's) anyway; every access is atomic.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Maps an array made with BPF_F_MMAPABLE, whose elements are `T`s.
    pub fn new(fd: BorrowedFd<'_>, elements: u32) -> io::Result<Shared<T>> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>().is_multiple_of(8)) };
        let bytes = size_of::<T>() * elements as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping; the kernel checks descriptor and length.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                flags,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Shared {
            memory,
            elements,
            bytes,
            element: PhantomData,
        })
    }

    /// How many elements there are.
    pub fn elements(&self) -> u32 {
        self.elements
    }

    /// The words of an element; none for an index that does not exist.
    pub fn words(&self, index: u32) -> &[AtomicU64] {
        if index >= self.elements {
            return &[];
        }
        // SAFETY: inside the mapping, which lives as long as self; aligned, as pages and elements are.
        unsafe {
            let first = self.memory.as_ptr().add(size_of::<T>() * index as usize);
            std::slice::from_raw_parts(first.cast::<AtomicU64>(), size_of::<T>() / 8)
        }
    }

    /// A word of an element, by its byte offset.
    pub fn word(&self, index: u32, offset: usize) -> u64 {
        self.words(index)
            .get(offset / 8)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Replaces a word of an element.
    pub fn store(&self, index: u32, offset: usize, value: u64) {
        if let Some(word) = self.words(index).get(offset / 8) {
            word.store(value, Ordering::Release);
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nothing borrowed from it outlives self.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
