//! Winsock's extension functions, which are asked for at run time.

use std::io;
use std::net::UdpSocket;
use std::ptr::null_mut;
use std::sync::OnceLock;

use socket2::{Domain, Protocol, Socket, Type};
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_DISCONNECTEX, SIO_GET_EXTENSION_FUNCTION_POINTER, WSAID_ACCEPTEX,
    WSAID_CONNECTEX, WSAID_DISCONNECTEX, WSAIoctl,
};
use windows_sys::core::GUID;

use super::port::raw;

type Accept = <LPFN_ACCEPTEX as Filled>::Function;
type Connect = <LPFN_CONNECTEX as Filled>::Function;
type Disconnect = <LPFN_DISCONNECTEX as Filled>::Function;

/// What is in an `Option`.
pub trait Filled {
    type Function;
}

impl<T> Filled for Option<T> {
    type Function = T;
}

/// See the module.
#[derive(Clone, Copy)]
pub struct Extensions {
    pub accept: Accept,
    pub connect: Connect,
    pub disconnect: Disconnect,
}

impl Extensions {
    pub fn get() -> io::Result<Extensions> {
        static FOUND: OnceLock<Extensions> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(*found);
        }
        // std starts Winsock with its first socket.
        drop(UdpSocket::bind(("127.0.0.1", 0)));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // SAFETY: each number is that of a function of that type.
        let found = unsafe {
            Extensions {
                accept: look_up::<LPFN_ACCEPTEX>(&socket, WSAID_ACCEPTEX)?.ok_or(io::ErrorKind::Unsupported)?,
                connect: look_up::<LPFN_CONNECTEX>(&socket, WSAID_CONNECTEX)?.ok_or(io::ErrorKind::Unsupported)?,
                disconnect: look_up::<LPFN_DISCONNECTEX>(&socket, WSAID_DISCONNECTEX)?
                    .ok_or(io::ErrorKind::Unsupported)?,
            }
        };
        Ok(*FOUND.get_or_init(|| found))
    }
}

/// # Safety
/// `T` is an optional pointer to the function that `number` names.
unsafe fn look_up<T: Default>(socket: &Socket, number: GUID) -> io::Result<T> {
    let mut function = T::default();
    let mut bytes = 0;
    // SAFETY: a number in, a pointer out.
    let failed = unsafe {
        WSAIoctl(
            raw(socket),
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const number).cast(),
            size_of::<GUID>() as u32,
            (&raw mut function).cast(),
            size_of::<T>() as u32,
            &mut bytes,
            null_mut(),
            None,
        )
    };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(function) }
}
