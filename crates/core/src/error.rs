//! What all errors that users meet have in common.

/// Lets errors print by `Debug` what they print by `Display`.
///
/// Rule: an error is read as it was written. `main() -> Result<(), BoxError>` prints by `Debug`, and so do `unwrap` and
/// `expect`: a derived `Debug` would show the names of fields in place of what to do.
#[doc(hidden)]
#[macro_export]
macro_rules! debug_as_display {
    ($($error:ident $(<$parameter:ident>)?),* $(,)?) => {$(
        impl $(<$parameter>)? ::std::fmt::Debug for $error $(<$parameter>)? {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Display::fmt(self, f)
            }
        }
    )*};
}

pub(crate) use debug_as_display;
