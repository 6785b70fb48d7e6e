//! The device's half: pulls, proves, scores, captures, uploads.
