//! What was committed since a book was last read.

use fleet::book::{Book, Ceilings, Claim, ClassRule, Held, Intent, Node, Tally};
use fleet::{Offer, Readiness, Snapshot};

/// What was committed since a book was last read.
#[derive(Debug, Default)]
pub struct News {
    /// It is everything that is open: the book begins anew.
    pub all: bool,
    /// When anybody last wrote, milliseconds since 1970; 0 where that is not known.
    pub last_at_ms: i64,
    /// Nodes that changed.
    pub nodes: Vec<Node>,
    /// Claims that changed.
    pub claims: Vec<Claim>,
    /// Intents that changed.
    pub intents: Vec<Intent>,
    /// Tallies that changed.
    pub tallies: Vec<(String, Tally)>,
    /// Documents that changed.
    pub documents: BookDocuments,
}

/// Documents that every replica's book has to know of.
#[derive(Debug, Default)]
pub struct BookDocuments {
    /// The offer table, if it changed.
    pub offers: Option<Vec<Offer>>,
    /// All classes, if one changed.
    pub classes: Option<Vec<ClassRule>>,
    /// Causes that are held, if they changed.
    pub held: Option<Held>,
    /// All snapshots, if one changed.
    pub snapshots: Option<Vec<Snapshot>>,
    /// What starts took, if something was learnt.
    pub readiness: Option<Readiness>,
    /// What can be had at most, if that changed.
    pub ceilings: Option<Ceilings>,
}

impl News {
    /// Brings a book up to date.
    pub fn tell(self, book: &mut Book) {
        self.documents.tell(book);
        self.nodes.into_iter().for_each(|n| book.load_node(n));
        self.claims.into_iter().for_each(|c| book.load_claim(c));
        self.intents.into_iter().for_each(|i| book.load_intent(i));
        self.tallies.into_iter().for_each(|(class, tally)| book.load_tally(class, tally));
    }
}

impl BookDocuments {
    /// Brings a book up to date.
    pub fn tell(self, book: &mut Book) {
        if let Some(offers) = self.offers {
            book.set_offers(offers);
        }
        if let Some(ceilings) = self.ceilings {
            book.set_ceilings(ceilings);
        }
        if let Some(held) = self.held {
            book.set_held(held);
        }
        if let Some(classes) = self.classes {
            book.set_classes(classes);
        }
        if let Some(snapshots) = self.snapshots {
            book.set_snapshots(snapshots);
        }
        if let Some(readiness) = self.readiness {
            book.set_readiness(readiness);
        }
    }
}
