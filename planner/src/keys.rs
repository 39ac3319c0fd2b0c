//! What the rows and columns of the linear program are called. Every index is a type of its own, so that a period can
//! never stand where a source is meant.

use std::fmt;

/// Index types: an order, and the bare number when shown (row names of MPS files are made of it).
macro_rules! indices {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub usize);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )+};
}

indices! {
    /// A period of the horizon.
    Period,
    /// A demand path; after the last path, the loss of a domain (see [`crate::model::Model::blocks`]).
    Block,
    /// A source of nodes.
    SourceId,
    /// A pool of sources.
    PoolId,
    /// A class.
    ClassId,
    /// Classes that the same pools serve alike.
    GroupId,
    /// Pools and classes that have nothing to do with the others (see [`crate::recourse`]).
    ComponentId,
    /// Demand paths that are taken together; after the last of them, the loss of a domain (see [`crate::recourse`]).
    Part,
    /// A lower bound on a shortfall.
    CutId,
    /// A quota.
    QuotaId,
    /// A group of offers under one launch rate.
    RateGroupId,
    /// A commitment.
    CommitmentId,
    /// A spread limit.
    SpreadId,
    /// A domain that is lost as one.
    DomainId,
}

/// What is missed of one component in one part of one period (decomposition only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortfallKey {
    /// Whose.
    pub component: ComponentId,
    /// When.
    pub period: Period,
    /// On which paths, or after which loss.
    pub part: Part,
}

/// A row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKey {
    /// Nodes that exist: `n_t ≤ survivors + arrivals`.
    Flow(SourceId, Period),
    /// Nodes that must be kept: claimed, or inside their minimum billing time.
    Floor(SourceId, Period),
    /// Nodes are paid by a commitment or billed.
    Own(SourceId, Period),
    /// Launches beyond the parent plan's cost more: free to fall, slow to rise.
    Sticky(SourceId, Period),
    /// Units of a quota.
    Quota(QuotaId, Period),
    /// Launches of a provider.
    Rate(RateGroupId, Period),
    /// Nodes that a commitment pays for.
    Commitment(CommitmentId, Period),
    /// GPUs of one domain beyond its share.
    Spread(SpreadId, Period),
    /// Dollars an hour.
    Budget(Period),
    /// GPUs of a pool (decomposition only).
    Pool(PoolId, Period),
    /// A lower bound on a shortfall (decomposition only).
    Cut(CutId),
    /// GPUs of a source given out (extensive form only).
    Use(SourceId, Period, Block),
    /// GPUs of a source that a group of classes can use (extensive form only).
    Edge(SourceId, Period, Block, GroupId),
    /// The same of what is left of partly claimed nodes (extensive form only).
    UseFixed(PoolId, Period, Block),
    /// See `UseFixed`.
    EdgeFixed(PoolId, Period, Block, GroupId),
    /// Demand is covered or missed (extensive form only).
    Cover(ClassId, Period, Block),
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ColKey {
    /// Healthy nodes (extensive form only).
    Nodes(SourceId, Period),
    /// Nodes that exist or arrive anyway, while none is released: fixed at 1 (decomposition only).
    Inventory(SourceId),
    /// Nodes that are released (decomposition only).
    Release(SourceId, Period),
    /// Launches.
    Launch(SourceId, Period),
    /// Launches beyond the parent plan's.
    Over(SourceId, Period),
    /// Nodes that a commitment pays for.
    Paid(CommitmentId, SourceId, Period),
    /// Nodes billed beside commitments.
    Billed(SourceId, Period),
    /// Units over a quota.
    QuotaSlack(QuotaId, Period),
    /// Dollars an hour over the budget.
    BudgetSlack(Period),
    /// GPUs over a spread limit.
    SpreadSlack(SpreadId, Period),
    /// Missed claims (extensive form only).
    Miss(ClassId, Period, Block),
    /// GPUs of a pool (decomposition only).
    Pool(PoolId, Period),
    /// See [`ShortfallKey`].
    Shortfall(ShortfallKey),
    /// GPUs of a source that serve a class (extensive form only).
    Serve(SourceId, ClassId, Period, Block),
    /// The same of what is left of partly claimed nodes (extensive form only).
    ServeFixed(PoolId, ClassId, Period, Block),
}
