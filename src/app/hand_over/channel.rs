//! One end of the socket between both processes. Each message is one packet (`SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A reason may be all the diagnostics of a configuration; what is longer is cut.
const MAX_MESSAGE: usize = 16 * 1024;

/// The kernel takes 253 descriptors in one message (`SCM_MAX_FD`, unix(7)).
pub(super) const MAX_DESCRIPTORS: usize = 200;

/// One end. Its type is for the runtime to wait on: nothing is read or written as a stream.
pub(super) struct Channel(UnixStream);

/// Two ends; neither is inherited by chance.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    Ok(pair?)
}

impl Channel {
    /// Of the current runtime.
    pub fn new(end: OwnedFd) -> io::Result<Channel> {
        let end = std::os::unix::net::UnixStream::from(end);
        end.set_nonblocking(true)?;
        UnixStream::from_std(end).map(Channel)
    }

    pub async fn say(&self, message: &str) -> io::Result<()> {
        let send = || send(self.0.as_fd(), message, &[]);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// `None`: the other process is gone.
    pub async fn hear(&self) -> io::Result<Option<String>> {
        let receive = || receive(self.0.as_fd());
        let (message, _) = self.0.async_io(Interest::READABLE, receive).await?;
        Ok(message)
    }
}

/// Sends a message and copies of `descriptors`.
pub(super) fn send(
    end: BorrowedFd<'_>,
    message: &str,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let reason = format!("{} descriptors are too many at once", descriptors.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let length = message.len().min(MAX_MESSAGE);
    let packet = [IoSlice::new(&message.as_bytes()[..length])];
    rustix::net::sendmsg(end, &packet, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, and what came with it. `None`: the other process is gone.
pub(super) fn receive(end: BorrowedFd<'_>) -> io::Result<(Option<String>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut packet = vec![0; MAX_MESSAGE];
    let received = rustix::net::recvmsg(
        end,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = match received {
        Ok(received) => received,
        // It ended without having read everything.
        Err(rustix::io::Errno::CONNRESET) => return Ok((None, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    packet.truncate(received.bytes);
    let message = String::from_utf8_lossy(&packet).into_owned();
    Ok(((!message.is_empty()).then_some(message), descriptors))
}
