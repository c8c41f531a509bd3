//! Feeds any bytes to the reader of plugin files and of their metadata section.
//!
//! A plugin folder is scanned before anything in it is trusted, so every input
//! must end in metadata or in an error.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(tenon_modules::fuzz_metadata);
