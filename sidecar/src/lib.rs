//! The proxy beside each service.
