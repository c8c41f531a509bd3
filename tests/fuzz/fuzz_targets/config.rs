//! Feeds any text to the reader of configuration files.
//!
//! An operator writes it by hand: every input must end in a configuration, which
//! saves to a text that reads as the same, or in one line that names the file.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(tenon_control::fuzz_config);
