//! `pilotlight token new | list | revoke`: straight in the database, so that the first one can be made.

use anyhow::bail;

use providers::Clock;
use server::config::Config;
use server::secrets::host_secret;
use server::store::{DocumentKey, Ledger, Options, Store, TokenRow, Write};
use server::tokens::{Role, hash_of, new_secret};

use crate::render::table;

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token, or give one of that name a new secret; the old secret ends. The secret is shown once.
    New {
        /// Its name; shown in the audit log.
        name: String,
        /// viewer reads, scheduler claims, operator edits.
        role: String,
        /// Where the tokens are.
        #[command(flatten)]
        database: Database,
    },
    /// The secret with which a machine of your own joins, whichever launch takes it.
    Host {
        /// Its name, as the provider's `hosts` has it.
        name: String,
        /// Where the tokens are.
        #[command(flatten)]
        database: Database,
    },
    /// All tokens that may be used.
    List {
        /// Where the tokens are.
        #[command(flatten)]
        database: Database,
    },
    /// End a token.
    Revoke {
        /// Its name.
        name: String,
        /// Where the tokens are.
        #[command(flatten)]
        database: Database,
    },
}

/// Which database.
#[derive(Debug, clap::Args)]
pub struct Database {
    /// `sqlite:FILE` or `postgres://…`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: Option<String>,
}

impl Database {
    fn url(&self) -> String {
        Config::default().database_url(self.database.clone())
    }
}

/// Makes, lists or revokes tokens, in the database itself.
///
/// # Errors
/// The database cannot be used, or the role or the name is not known.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::New { name, role, database } => {
                let Some(role) = Role::named(role).filter(|r| *r != Role::Agent) else {
                    bail!("'{role}' is no role: use viewer, scheduler or operator (agents join with the secret of their launch)");
                };
                let store = Store::open(&database.url()).await?;
                let ledger = Ledger::start(&store, Options::of_a_command(Clock::system())).await?;
                let secret = new_secret()?;
                let row = TokenRow { name: name.clone(), role: role.name().into(), hash: hash_of(&secret) };
                ledger.record(Write::PutToken(row), None).await?;
                eprintln!("token '{name}' ({}): keep it, it is not shown again; servers know it within 5 s", role.name());
                println!("{secret}");
            }
            Command::Host { name, database } => {
                let store = Store::open(&database.url()).await?;
                let Some(key) = store.text(&DocumentKey::JoinKey).await? else {
                    bail!("this database has no join key yet: start 'pilotlight serve' on it once");
                };
                println!("{}", host_secret(&key, name));
            }
            Command::List { database } => {
                let store = Store::open(&database.url()).await?;
                let mut rows = table(&["name", "role"], 0..0);
                for token in store.tokens().await? {
                    rows.add_row([token.name, token.role]);
                }
                println!("{rows}");
            }
            Command::Revoke { name, database } => {
                let store = Store::open(&database.url()).await?;
                let ledger = Ledger::start(&store, Options::of_a_command(Clock::system())).await?;
                if store.tokens().await?.iter().all(|t| t.name != *name) {
                    bail!("there is no token '{name}'; 'pilotlight token list' shows them");
                }
                ledger.record(Write::RevokeToken(name.clone()), None).await?;
                eprintln!("token '{name}' has ended; servers know it within 5 s");
            }
        }
        Ok(())
    })
}
