//! `wasi:sockets` 0.3.
//!
//! Here sockets may connect, listen and send without having been bound; those of a confined pod are
//! bound to the pod's address first.

use std::net::SocketAddr;

use wasmtime::{
    AsContextMut,
    component::{Access, Accessor, FutureReader, Resource, StreamReader},
};
pub(super) use wasmtime_wasi::p3::bindings::sockets::types;
use wasmtime_wasi::{
    p3::{
        bindings::sockets::types::{
            Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket,
            HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress, TcpSocket, UdpSocket,
        },
        sockets::{SocketError, SocketResult},
    },
    sockets::{WasiSockets, WasiSocketsCtxView, WasiSocketsView},
};

use super::{PodSockets, PodSocketsView};
use crate::{network::Network, state::State};

fn plain(state: &mut State) -> WasiSocketsCtxView<'_> {
    state.sockets()
}

/// Access to the same store as wasmtime-wasi sees it.
fn plain_access<'a>(
    store: &'a mut Access<'_, State, PodSockets>,
) -> Access<'a, State, WasiSockets> {
    Access::<State, WasiSockets>::new(store.as_context_mut(), plain)
}

fn unspecified(family: IpAddressFamily) -> SocketAddr {
    match family {
        IpAddressFamily::Ipv4 => SocketAddr::from(([0; 4], 0)),
        IpAddressFamily::Ipv6 => SocketAddr::from(([0u16; 8], 0)),
    }
}

/// Runs a host call that binds, which does not wait.
fn at_once<T>(call: impl Future<Output = SocketResult<T>>) -> SocketResult<T> {
    futures::FutureExt::now_or_never(call).ok_or(ErrorCode::Other(None))?
}

impl PodSocketsView<'_> {
    fn p3_bind_address(&self, asked: IpSocketAddress) -> SocketResult<IpSocketAddress> {
        Ok(self
            .pod
            .network
            .bind_address(asked.into())
            .ok_or(ErrorCode::AddressNotBindable)?
            .into())
    }

    fn p3_peer_address(&self, asked: IpSocketAddress) -> SocketResult<IpSocketAddress> {
        Ok(self
            .pod
            .network
            .peer_address(asked.into())
            .ok_or(ErrorCode::RemoteUnreachable)?
            .into())
    }

    fn source(&self, family: IpAddressFamily) -> SocketResult<IpSocketAddress> {
        Ok(self
            .pod
            .network
            .bind_address(unspecified(family))
            .ok_or(ErrorCode::AddressNotBindable)?
            .into())
    }

    fn bind_tcp(&mut self, socket: &Resource<TcpSocket>) -> SocketResult<()> {
        let own = || Resource::new_borrow(socket.rep());
        if self.pod.network == Network::Open
            || HostTcpSocket::get_local_address(&mut self.sockets, own()).is_ok()
        {
            return Ok(());
        }
        let family = HostTcpSocket::get_address_family(&mut self.sockets, own())
            .map_err(SocketError::trap)?;
        let source = self.source(family)?;
        at_once(HostTcpSocket::bind(&mut self.sockets, own(), source))
    }

    fn bind_udp(&mut self, socket: &Resource<UdpSocket>) -> SocketResult<()> {
        let own = || Resource::new_borrow(socket.rep());
        if self.pod.network == Network::Open
            || HostUdpSocket::get_local_address(&mut self.sockets, own()).is_ok()
        {
            return Ok(());
        }
        let family = HostUdpSocket::get_address_family(&mut self.sockets, own())
            .map_err(SocketError::trap)?;
        let source = self.source(family)?;
        at_once(HostUdpSocket::bind(&mut self.sockets, own(), source))
    }
}

macro_rules! as_before {
    ($trait:ident for $resource:ty: $(fn $name:ident($this:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty;)*) => {
        $(fn $name(&mut self, $this: Resource<$resource> $(, $arg: $ty)*) -> $ret {
            $trait::$name(&mut self.sockets, $this $(, $arg)*)
        })*
    };
}

impl types::Host for PodSocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        types::Host::convert_error_code(&mut self.sockets, error)
    }
}

impl HostTcpSocketWithStore<State> for PodSockets {
    async fn connect(
        store: &Accessor<State, Self>,
        socket: Resource<TcpSocket>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = store.with(|mut access| {
            let mut view = access.get();
            let address = view.p3_peer_address(remote_address)?;
            view.bind_tcp(&socket)?;
            SocketResult::Ok(address)
        })?;
        WasiSockets::connect(&store.with_getter::<WasiSockets>(plain), socket, address).await
    }

    async fn listen(
        mut store: Access<'_, State, Self>,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<StreamReader<Resource<TcpSocket>>> {
        store.get().bind_tcp(&socket)?;
        WasiSockets::listen(plain_access(&mut store), socket).await
    }

    fn send(
        mut store: Access<'_, State, Self>,
        socket: Resource<TcpSocket>,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        <WasiSockets as HostTcpSocketWithStore<State>>::send(plain_access(&mut store), socket, data)
    }

    fn receive(
        mut store: Access<'_, State, Self>,
        socket: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        <WasiSockets as HostTcpSocketWithStore<State>>::receive(plain_access(&mut store), socket)
    }
}

impl HostTcpSocket for PodSocketsView<'_> {
    async fn bind(
        &mut self,
        socket: Resource<TcpSocket>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.p3_bind_address(local_address)?;
        HostTcpSocket::bind(&mut self.sockets, socket, address).await
    }

    fn create(&mut self, address_family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        HostTcpSocket::create(&mut self.sockets, address_family)
    }

    as_before! { HostTcpSocket for TcpSocket:
        fn get_local_address(socket) -> SocketResult<IpSocketAddress>;
        fn get_remote_address(socket) -> SocketResult<IpSocketAddress>;
        fn get_is_listening(socket) -> wasmtime::Result<bool>;
        fn get_address_family(socket) -> wasmtime::Result<IpAddressFamily>;
        fn set_listen_backlog_size(socket, value: u64) -> SocketResult<()>;
        fn get_keep_alive_enabled(socket) -> SocketResult<bool>;
        fn set_keep_alive_enabled(socket, value: bool) -> SocketResult<()>;
        fn get_keep_alive_idle_time(socket) -> SocketResult<Duration>;
        fn set_keep_alive_idle_time(socket, value: Duration) -> SocketResult<()>;
        fn get_keep_alive_interval(socket) -> SocketResult<Duration>;
        fn set_keep_alive_interval(socket, value: Duration) -> SocketResult<()>;
        fn get_keep_alive_count(socket) -> SocketResult<u32>;
        fn set_keep_alive_count(socket, value: u32) -> SocketResult<()>;
        fn get_hop_limit(socket) -> SocketResult<u8>;
        fn set_hop_limit(socket, value: u8) -> SocketResult<()>;
        fn get_receive_buffer_size(socket) -> SocketResult<u64>;
        fn set_receive_buffer_size(socket, value: u64) -> SocketResult<()>;
        fn get_send_buffer_size(socket) -> SocketResult<u64>;
        fn set_send_buffer_size(socket, value: u64) -> SocketResult<()>;
        fn drop(socket) -> wasmtime::Result<()>;
    }
}

impl HostUdpSocketWithStore<State> for PodSockets {
    async fn send(
        store: &Accessor<State, Self>,
        socket: Resource<UdpSocket>,
        data: Vec<u8>,
        remote_address: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        let address = store.with(|mut access| {
            let mut view = access.get();
            view.bind_udp(&socket)?;
            remote_address
                .map(|address| view.p3_peer_address(address))
                .transpose()
        })?;
        let plain = store.with_getter::<WasiSockets>(plain);
        <WasiSockets as HostUdpSocketWithStore<State>>::send(&plain, socket, data, address).await
    }

    async fn receive(
        store: &Accessor<State, Self>,
        socket: Resource<UdpSocket>,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let plain = store.with_getter::<WasiSockets>(plain);
        <WasiSockets as HostUdpSocketWithStore<State>>::receive(&plain, socket).await
    }
}

impl HostUdpSocket for PodSocketsView<'_> {
    async fn bind(
        &mut self,
        socket: Resource<UdpSocket>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.p3_bind_address(local_address)?;
        HostUdpSocket::bind(&mut self.sockets, socket, address).await
    }

    async fn connect(
        &mut self,
        socket: Resource<UdpSocket>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.p3_peer_address(remote_address)?;
        self.bind_udp(&socket)?;
        HostUdpSocket::connect(&mut self.sockets, socket, address).await
    }

    async fn create(
        &mut self,
        address_family: IpAddressFamily,
    ) -> SocketResult<Resource<UdpSocket>> {
        HostUdpSocket::create(&mut self.sockets, address_family).await
    }

    as_before! { HostUdpSocket for UdpSocket:
        fn disconnect(socket) -> SocketResult<()>;
        fn get_local_address(socket) -> SocketResult<IpSocketAddress>;
        fn get_remote_address(socket) -> SocketResult<IpSocketAddress>;
        fn get_address_family(socket) -> wasmtime::Result<IpAddressFamily>;
        fn get_unicast_hop_limit(socket) -> SocketResult<u8>;
        fn set_unicast_hop_limit(socket, value: u8) -> SocketResult<()>;
        fn get_receive_buffer_size(socket) -> SocketResult<u64>;
        fn set_receive_buffer_size(socket, value: u64) -> SocketResult<()>;
        fn get_send_buffer_size(socket) -> SocketResult<u64>;
        fn set_send_buffer_size(socket, value: u64) -> SocketResult<()>;
        fn drop(socket) -> wasmtime::Result<()>;
    }
}
