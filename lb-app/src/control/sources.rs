//! What control is told by sources other than the file.

use std::sync::Arc;

use lb_core::model::DesiredState;

use super::{Control, Drains};
use crate::source::{Application, ApplyError, Offer, Overlaps, Refused, State, Wanted};

impl Control {
    /// Takes what a feed wants, and says what became of it.
    pub(crate) async fn follow_feed(&mut self, offer: Offer) {
        let Offer { state, answer } = offer;
        let verdict = match self.take(state).await {
            Ok(version) if self.in_force() < version => Err(Refused::NotInForce(version)),
            verdict => verdict,
        };
        drop(answer.send(verdict)); // or it has ended
    }

    /// Takes what is applied. The version that it is applied as.
    pub(crate) async fn apply(&mut self, application: Application) -> Result<u64, ApplyError> {
        application.check(self.applied.version)?;
        let version = self.applied.version + 1;
        match self.take(application.state(version)).await {
            Ok(_) => {
                self.applied.keep(application, version);
                Ok(version)
            }
            Err(refused) => Err(ApplyError::Refused(application.errors(&refused))),
        }
    }

    /// The version of what was applied last.
    pub(crate) fn applied(&self) -> u64 {
        self.applied.version
    }

    /// Takes what a source wants. All of it is in force when this returns, or nothing of it. The version of
    /// the tables.
    async fn take(&mut self, state: State) -> Result<u64, Refused> {
        let (wanted, drains, desired) = self.with(state)?;
        let difference = self.prepare(&desired).await?;
        self.wanted = Arc::new(wanted);
        self.follow_drains(drains);
        self.want(desired, difference).await?;
        Ok(self.version())
    }

    /// What would be wanted with `state`, and what follows.
    pub(super) fn with(&self, state: State) -> Result<(Wanted, Drains, DesiredState), Overlaps> {
        let wanted = self.wanted.with(state)?;
        let drains = self.drains.retained(wanted.desired());
        let desired = drains.applied_to(wanted.desired());
        Ok((wanted, drains, desired))
    }
}
