//! What the agent and the library that is preloaded into workloads say to each other: packets of JSON over a socket that exists
//! only while they talk, with a descriptor beside one where memory is handed over.
//!
//! The agent listens at an abstract address with a number in it, and sends that number with [`SIGNAL`] to the library's thread,
//! which connects. So nothing of a conversation is open in the workload when it is captured.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the library's thread.
pub const THREAD: &str = "pilotlight-mem";
/// What wakes it: a signal that it alone waits for, and blocks.
pub const SIGNAL: i32 = 62;
/// What both must speak.
pub const FORMAT: u32 = 1;
/// Longest packet, bytes.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// Connections that wait: others than the library may try.
const BACKLOG: i32 = 64;

/// Stretch of device memory that a workload has in bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its address in the workload.
    pub address: u64,
    /// Its length, bytes: whole granules of the driver.
    pub bytes: u64,
    /// Number of its GPU, as the workload counts them.
    pub device: u32,
}

/// What a workload has that the driver's Restore refuses after its Checkpoint succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hazards {
    /// Memory of other processes that it has open (`cuIpcOpenMemHandle`).
    pub ipc: u32,
    /// Memory handles of other processes that it holds (`cuMemImportFromShareableHandle`).
    pub imported: u32,
    /// Managed memory (`cuMemAllocManaged`).
    pub managed: u32,
    /// Multicast objects (`cuMulticastCreate`).
    pub multicast: u32,
    /// Communicators of NCCL.
    pub communicators: u32,
}

/// What a workload's library says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`] of the library.
    pub format: u32,
    /// Identities of all GPUs that it sees, as it counts them.
    pub gpus: Vec<[u8; 16]>,
    /// Bulk memory: GPUs with the bytes on each.
    pub bulk: Vec<(u32, u64)>,
    /// Pairs of GPUs, the first of which reaches memory of the second. The library takes them down and up.
    pub peers: Vec<(u32, u32)>,
    /// What would be lost.
    pub hazards: Hazards,
}

/// What the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Nothing may be allocated or freed from now on.
    Hold,
    /// Waits for what was submitted, and hands over all of its bulk memory: [`Said::Segment`] each, then [`Said::Done`].
    Export,
    /// Lets go of what was handed over, and of access between GPUs. Addresses stay its own.
    Release,
    /// Takes the memory at this address back, from the handle beside; answered by nothing.
    Give(u64),
    /// All is given back: access between GPUs is made again, and allocations go on.
    Resume,
    /// That is all.
    Bye,
}

/// What the library says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// On connecting.
    Report(Report),
    /// A stretch, with its handle beside.
    Segment(Segment),
    /// It was done.
    Done,
    /// It was not.
    Failed {
        /// The driver's function.
        function: String,
        /// What it returned (`CUresult`).
        code: u32,
    },
}

/// Why nothing was understood.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is gone, or does not answer.
    #[error("the conversation with the workload's library broke off")]
    Broken(#[from] rustix::io::Errno),
    /// It says nothing that makes sense.
    #[error("the workload's library says what makes no sense")]
    Nonsense(#[from] serde_json::Error),
    /// It is gone.
    #[error("the workload's library ended the conversation")]
    Closed,
}

/// A conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Where the agent waits for a library.
#[derive(Debug)]
pub struct Listener(OwnedFd);

fn address(number: i32) -> Result<SocketAddrUnix, rustix::io::Errno> {
    SocketAddrUnix::new_abstract_name(format!("pilotlight-memory-{number}").as_bytes())
}

fn socket() -> Result<OwnedFd, rustix::io::Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl Listener {
    /// Listens under a number.
    ///
    /// # Errors
    /// Another does.
    pub fn new(number: i32) -> Result<Self, ChannelError> {
        let fd = socket()?;
        bind(&fd, &address(number)?)?;
        listen(&fd, BACKLOG)?;
        Ok(Self(fd))
    }

    /// Waits so long for a connection; whose it is, as this process numbers processes.
    ///
    /// # Errors
    /// Nobody connects.
    pub fn accept(&self, patience: Duration) -> Result<(Channel, i32), ChannelError> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        let channel = Channel(accept_with(&self.0, SocketFlags::CLOEXEC)?);
        channel.patience(patience)?;
        let process = channel.peer()?.process;
        Ok((channel, process))
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its number as this process numbers processes; 0, if it has none here.
    pub process: i32,
    /// Its user.
    pub user: u32,
}

impl Channel {
    /// Who is at the other end.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn peer(&self) -> Result<Peer, ChannelError> {
        let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the kernel writes one such structure, and its length.
        #[allow(unsafe_code)]
        let got = unsafe {
            let to = (&raw mut found).cast();
            libc::getsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, to, &raw mut bytes)
        };
        if got == 0 { Ok(Peer { process: found.pid, user: found.uid }) } else { Err(rustix::io::Errno::NOTCONN.into()) }
    }

    /// Connects to who listens under a number.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(number: i32, patience: Duration) -> Result<Self, ChannelError> {
        let fd = socket()?;
        connect(&fd, &address(number)?)?;
        let channel = Self(fd);
        channel.patience(patience)?;
        Ok(channel)
    }

    /// How long the other side may take.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn patience(&self, patience: Duration) -> Result<(), ChannelError> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        Ok(sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(patience))?)
    }

    /// Says something.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn say<T: Serialize>(&self, what: &T, beside: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        let text = serde_json::to_vec(what)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = beside.map(|fd| [fd]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Hears something.
    ///
    /// # Errors
    /// Nothing comes, or nonsense.
    pub fn hear<T: DeserializeOwned>(&self) -> Result<(T, Option<OwnedFd>), ChannelError> {
        let mut text = vec![0; PACKET_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                got => break got?,
            }
        };
        let mut beside = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                beside = fds.last();
            }
        }
        if got.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        Ok((serde_json::from_slice(&text[..got.bytes])?, beside))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_descriptors_come_across() {
        let number = std::process::id().cast_signed();
        let listener = Listener::new(number).expect("free");
        assert!(Listener::new(number).is_err(), "one listens under a number");
        let other = std::thread::spawn(move || {
            let channel = Channel::connect(number, Duration::from_secs(5)).expect("somebody listens");
            let (read, write) = std::io::pipe().expect("a pipe");
            channel.say(&Said::Done, Some(read.as_fd())).expect("heard");
            drop(read);
            std::io::Write::write_all(&mut &write, b"x").expect("open at the other end");
            channel.hear::<Order>().expect("an order").0
        });
        let (channel, pid) = listener.accept(Duration::from_secs(5)).expect("it connects");
        assert_eq!(pid, number);
        let (said, beside) = channel.hear::<Said>().expect("heard");
        assert_eq!(said, Said::Done);
        let mut byte = [0];
        std::io::Read::read_exact(&mut std::fs::File::from(beside.expect("a descriptor")), &mut byte).expect("a byte");
        channel.say(&Order::Give(u64::MAX), None).expect("heard");
        assert_eq!((byte, other.join().expect("ran")), ([b'x'], Order::Give(u64::MAX)));
        assert!(matches!(channel.hear::<Said>(), Err(ChannelError::Closed)), "it is gone");
    }
}
