//! Conditions of policies.
