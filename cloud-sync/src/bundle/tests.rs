//! Bundles in their three forms, and those that are refused.
