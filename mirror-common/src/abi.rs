//! What both halves touch, described: a change of it asks for a new [`crate::ABI_VERSION`].
//!
//! [`shared!`] declares a struct and describes it, [`words!`] a group of constants. The tests here write all of
//! that into one table, with every label, every map and the programs' own slot, and compare it with `abi.txt`.

use core::fmt;

/// A field of a [`Shared`] type.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type, as it is written there.
    pub kind: &'static str,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How long it is, in bytes.
    pub size: usize,
}

/// A type whose every bit pattern is a value, and that has no padding.
///
/// # Safety
/// That is so.
pub unsafe trait Plain: Copy {}

// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: nothing between the elements, each of which is such.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// A struct in a map that both halves touch.
pub trait Shared: Plain {
    /// Its name.
    const NAME: &'static str;
    /// Its fields, in order.
    const FIELDS: &'static [Field];
}

/// Declares structs in maps: `repr(C)`, of plain fields, without padding.
macro_rules! shared {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* $vis:vis $field:ident: $kind:ty,)+
    }) => {
        $(#[$meta])*
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* $vis $field: $kind,)+
        }

        impl $crate::abi::Shared for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::abi::Field] = &[$($crate::abi::Field {
                name: stringify!($field),
                kind: stringify!($kind),
                offset: core::mem::offset_of!($name, $field),
                size: size_of::<$kind>(),
            },)+];
        }

        const _: () = {
            const fn plain<T: $crate::abi::Plain>() -> usize {
                size_of::<T>()
            }
            assert!(size_of::<$name>() == 0 $(+ plain::<$kind>())+, "padding");
        };

        // SAFETY: its fields are plain, and as long as it is: asserted above.
        unsafe impl $crate::abi::Plain for $name {}

        #[cfg(feature = "user")]
        // SAFETY: plain.
        unsafe impl aya::Pod for $name {}
    };
}

/// Declares a module of constants that mean something in a shared word, and lists them.
macro_rules! words {
    ($(#[$meta:meta])* pub mod $name:ident: $kind:ty {
        $($(#[$word_meta:meta])* $word:ident = $value:expr;)+
    }) => {
        $(#[$meta])*
        pub mod $name {
            $($(#[$word_meta])* pub const $word: $kind = $value;)+

            /// All of them, by name.
            pub const ALL: &[(&str, u64)] = &[$((stringify!($word), $word as u64),)+];
        }
    };
}

pub(crate) use {shared, words};

/// A type's lines in the table.
pub struct Described<T>(core::marker::PhantomData<T>);

impl<T> Default for Described<T> {
    fn default() -> Self {
        Self(core::marker::PhantomData)
    }
}

impl<T: Shared> fmt::Display for Described<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "struct {}, {} bytes", T::NAME, size_of::<T>())?;
        for Field {
            name,
            kind,
            offset,
            size,
        } in T::FIELDS
        {
            writeln!(f, "  {offset:4} {size:4} {name}: {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
