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
    /// A set of classes whose joint demand is cut.
    SetId,
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

/// GPUs that a set of classes can use in a period, with all domains or with one lost (decomposition only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetKey {
    /// Which set.
    pub set: SetId,
    /// When.
    pub period: Period,
    /// What is lost.
    pub lost: Option<DomainId>,
}

/// A Gale-Hoffman cut (decomposition only).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CutKey {
    /// Classes whose demand it sums.
    pub set: SetId,
    /// When.
    pub period: Period,
    /// On which path, or after which loss.
    pub block: Block,
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
    /// Hit-rate target of a class.
    Target(ClassId, Period),
    /// Tail of the miss cost (CVaR) of a path.
    Tail(Block),
    /// GPUs of a pool (decomposition only).
    Pool(PoolId, Period),
    /// See [`SetKey`].
    Set(SetKey),
    /// See [`CutKey`].
    Cut(CutKey),
    /// GPUs of a source given out (extensive form only).
    Use(SourceId, Period, Block),
    /// GPUs of a source that a class can use (extensive form only).
    Edge(SourceId, Period, Block, ClassId),
    /// Demand is covered or missed (extensive form only).
    Cover(ClassId, Period, Block),
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ColKey {
    /// Healthy nodes.
    Nodes(SourceId, Period),
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
    /// Missed claims beyond the target.
    TargetSlack(ClassId, Period),
    /// Missed claims.
    Miss(ClassId, Period, Block),
    /// CVaR's threshold.
    TailStart,
    /// CVaR's excess of a path.
    TailExcess(Block),
    /// GPUs of a pool (decomposition only).
    Pool(PoolId, Period),
    /// See [`SetKey`].
    Set(SetKey),
    /// GPUs of a source that serve a class (extensive form only).
    Serve(SourceId, ClassId, Period, Block),
}
