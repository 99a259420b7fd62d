//! Budgets of what an identity writes through Consul's API: all members share the memory and the store that hold it.
//!
//! Each record has the identity that wrote it last, and the sums are kept as records come and go. So they are the same
//! on every control plane and after a restart. A write in progress counts too, so that concurrent ones stay within.

use crate::identity::bounds::{Account, Accounts, Budget, Exceeded};
use crate::state::{Mesh, State};

/// What a record adds to the account of `identity`, in place of `old`: the old one's writer and bytes.
pub(super) fn growth(identity: &str, bytes: usize, old: Option<(&str, usize)>) -> Account {
    let own = old.filter(|(writer, _)| *writer == identity);
    Account { count: usize::from(own.is_none()), bytes: bytes.saturating_sub(own.map_or(0, |(_, bytes)| bytes)) }
}

/// The part of a budget that a write in progress takes.
pub(in crate::state) struct Reserved<'a> {
    mesh: &'a Mesh,
    accounts: fn(&mut State) -> &mut Accounts,
    identity: String,
    size: Account,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.mesh.lock();
        (self.accounts)(&mut state).subtract(&self.identity, self.size.count, self.size.bytes);
    }
}

impl Mesh {
    /// Reserves a part of an identity's budget for as long as the result is held, which must not be under the lock.
    ///
    /// # Errors
    /// If the budget is exceeded; the error names it.
    pub(super) fn reserve(
        &self,
        budget: &Budget,
        accounts: fn(&mut State) -> &mut Accounts,
        identity: &str,
        growth: impl FnOnce(&State) -> Account,
    ) -> Result<Option<Reserved<'_>>, Exceeded> {
        if identity.is_empty() {
            return Ok(None);
        }
        let mut state = self.lock();
        let size = growth(&state);
        let written = accounts(&mut state);
        budget.admit(identity, written.of(identity), size)?;
        written.add(identity, size.count, size.bytes);
        Ok(Some(Reserved { mesh: self, accounts, identity: identity.to_owned(), size }))
    }
}

#[cfg(test)]
mod tests;
