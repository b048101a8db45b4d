//! `wasi:sockets` 0.2, and 0.3 in `p3`, with the pod's addresses: wasmtime-wasi's own implementation, with addresses
//! translated on the way in ([`crate::network`]).
//!
//! Every socket of a confined pod is bound to the pod's address before it connects, so that what a
//! peer sees is the pod and not the node.

use std::net::SocketAddr;

use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::{
    p2::{
        DynInputStream, DynOutputStream, DynPollable, SocketError, SocketResult, TcpSocket,
        UdpSocket,
        bindings::sockets::{
            network::{
                self, ErrorCode, HostNetwork, IpAddressFamily, IpSocketAddress,
                Network as NetworkHandle,
            },
            tcp::{self, Duration, HostTcpSocket, ShutdownType},
            udp::{
                self, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket,
                IncomingDatagram, IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream,
            },
        },
    },
    sockets::{WasiSocketsCtxView, WasiSocketsView},
};

use crate::{network::Network, pod::Pod, state::State};

mod lookup;
mod p3;

/// Replaces `wasi:sockets/tcp`, `udp` and `ip-name-lookup` in a linker.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    tcp::add_to_linker::<_, PodSockets>(linker, pod_sockets)?;
    udp::add_to_linker::<_, PodSockets>(linker, pod_sockets)?;
    p3::types::add_to_linker::<_, PodSockets>(linker, pod_sockets)?;
    lookup::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn pod_sockets(state: &mut State) -> PodSocketsView<'_> {
    let pod = state.pod.clone();
    PodSocketsView {
        pod,
        sockets: state.sockets(),
    }
}

pub(crate) struct PodSockets;

impl HasData for PodSockets {
    type Data<'a> = PodSocketsView<'a>;
}

pub(crate) struct PodSocketsView<'a> {
    pod: std::sync::Arc<Pod>,
    sockets: WasiSocketsCtxView<'a>,
}

/// An address of the socket's family that means "any local one".
fn unspecified(family: IpAddressFamily) -> SocketAddr {
    match family {
        IpAddressFamily::Ipv4 => SocketAddr::from(([0; 4], 0)),
        IpAddressFamily::Ipv6 => SocketAddr::from(([0u16; 8], 0)),
    }
}

impl PodSocketsView<'_> {
    fn bind_address(&self, asked: IpSocketAddress) -> SocketResult<IpSocketAddress> {
        Ok(self
            .pod
            .network
            .bind_address(asked.into())
            .ok_or(ErrorCode::AddressNotBindable)?
            .into())
    }

    fn peer_address(&self, asked: IpSocketAddress) -> SocketResult<IpSocketAddress> {
        Ok(self
            .pod
            .network
            .peer_address(asked.into())
            .ok_or(ErrorCode::RemoteUnreachable)?
            .into())
    }
}

/// Methods that need no translation.
macro_rules! as_before {
    ($trait:ident: $(fn $name:ident($this:ident $(, $arg:ident: $ty:ty)*) -> $ret:ty;)*) => {
        $(fn $name(&mut self, $this: Resource<Self_!($trait)> $(, $arg: $ty)*) -> $ret {
            $trait::$name(&mut self.sockets, $this $(, $arg)*)
        })*
    };
}

macro_rules! Self_ {
    (HostTcpSocket) => {
        TcpSocket
    };
    (HostUdpSocket) => {
        UdpSocket
    };
    (HostIncomingDatagramStream) => {
        IncomingDatagramStream
    };
    (HostOutgoingDatagramStream) => {
        OutgoingDatagramStream
    };
}

impl network::Host for PodSocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        network::Host::convert_error_code(&mut self.sockets, error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        network::Host::network_error_code(&mut self.sockets, error)
    }
}

impl HostNetwork for PodSocketsView<'_> {
    fn drop(&mut self, this: Resource<NetworkHandle>) -> wasmtime::Result<()> {
        HostNetwork::drop(&mut self.sockets, this)
    }
}

impl tcp::Host for PodSocketsView<'_> {}

impl HostTcpSocket for PodSocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<NetworkHandle>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.bind_address(local_address)?;
        HostTcpSocket::start_bind(&mut self.sockets, this, network, address).await
    }

    // Binding to a port of the kernel's choice does not wait, so this can be a plain function.
    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<NetworkHandle>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.peer_address(remote_address)?;
        let own = || Resource::new_borrow(this.rep());
        let family =
            HostTcpSocket::address_family(&mut self.sockets, own()).map_err(SocketError::trap)?;
        let source = self.pod.network.bind_address(unspecified(family));
        if self.pod.network != Network::Open
            && HostTcpSocket::local_address(&mut self.sockets, own()).is_err()
        {
            let source = source.ok_or(ErrorCode::RemoteUnreachable)?;
            let handle = Resource::new_borrow(network.rep());
            let bind = HostTcpSocket::start_bind(&mut self.sockets, own(), handle, source.into());
            futures::FutureExt::now_or_never(bind).ok_or(ErrorCode::Unknown)??;
            HostTcpSocket::finish_bind(&mut self.sockets, own())?;
        }
        HostTcpSocket::start_connect(&mut self.sockets, this, network, address)
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        HostTcpSocket::start_listen(&mut self.sockets, this).await
    }

    as_before! { HostTcpSocket:
        fn finish_bind(this) -> SocketResult<()>;
        fn finish_connect(this) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)>;
        fn finish_listen(this) -> SocketResult<()>;
        fn accept(this) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)>;
        fn local_address(this) -> SocketResult<IpSocketAddress>;
        fn remote_address(this) -> SocketResult<IpSocketAddress>;
        fn is_listening(this) -> wasmtime::Result<bool>;
        fn address_family(this) -> wasmtime::Result<IpAddressFamily>;
        fn set_listen_backlog_size(this, value: u64) -> SocketResult<()>;
        fn keep_alive_enabled(this) -> SocketResult<bool>;
        fn set_keep_alive_enabled(this, value: bool) -> SocketResult<()>;
        fn keep_alive_idle_time(this) -> SocketResult<Duration>;
        fn set_keep_alive_idle_time(this, value: Duration) -> SocketResult<()>;
        fn keep_alive_interval(this) -> SocketResult<Duration>;
        fn set_keep_alive_interval(this, value: Duration) -> SocketResult<()>;
        fn keep_alive_count(this) -> SocketResult<u32>;
        fn set_keep_alive_count(this, value: u32) -> SocketResult<()>;
        fn hop_limit(this) -> SocketResult<u8>;
        fn set_hop_limit(this, value: u8) -> SocketResult<()>;
        fn receive_buffer_size(this) -> SocketResult<u64>;
        fn set_receive_buffer_size(this, value: u64) -> SocketResult<()>;
        fn send_buffer_size(this) -> SocketResult<u64>;
        fn set_send_buffer_size(this, value: u64) -> SocketResult<()>;
        fn subscribe(this) -> wasmtime::Result<Resource<DynPollable>>;
        fn shutdown(this, how: ShutdownType) -> SocketResult<()>;
        fn drop(this) -> wasmtime::Result<()>;
    }
}

impl udp::Host for PodSocketsView<'_> {}

impl HostUdpSocket for PodSocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<NetworkHandle>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.bind_address(local_address)?;
        HostUdpSocket::start_bind(&mut self.sockets, this, network, address).await
    }

    async fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote_address: Option<IpSocketAddress>,
    ) -> SocketResult<(
        Resource<IncomingDatagramStream>,
        Resource<OutgoingDatagramStream>,
    )> {
        let address = remote_address
            .map(|address| self.peer_address(address))
            .transpose()?;
        HostUdpSocket::stream(&mut self.sockets, this, address).await
    }

    as_before! { HostUdpSocket:
        fn finish_bind(this) -> SocketResult<()>;
        fn local_address(this) -> SocketResult<IpSocketAddress>;
        fn remote_address(this) -> SocketResult<IpSocketAddress>;
        fn address_family(this) -> wasmtime::Result<IpAddressFamily>;
        fn unicast_hop_limit(this) -> SocketResult<u8>;
        fn set_unicast_hop_limit(this, value: u8) -> SocketResult<()>;
        fn receive_buffer_size(this) -> SocketResult<u64>;
        fn set_receive_buffer_size(this, value: u64) -> SocketResult<()>;
        fn send_buffer_size(this) -> SocketResult<u64>;
        fn set_send_buffer_size(this, value: u64) -> SocketResult<()>;
        fn subscribe(this) -> wasmtime::Result<Resource<DynPollable>>;
        fn drop(this) -> wasmtime::Result<()>;
    }
}

impl HostIncomingDatagramStream for PodSocketsView<'_> {
    as_before! { HostIncomingDatagramStream:
        fn receive(this, max_results: u64) -> SocketResult<Vec<IncomingDatagram>>;
        fn subscribe(this) -> wasmtime::Result<Resource<DynPollable>>;
        fn drop(this) -> wasmtime::Result<()>;
    }
}

impl HostOutgoingDatagramStream for PodSocketsView<'_> {
    fn send(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
        mut datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        for datagram in &mut datagrams {
            datagram.remote_address = datagram
                .remote_address
                .map(|address| self.peer_address(address))
                .transpose()?;
        }
        HostOutgoingDatagramStream::send(&mut self.sockets, this, datagrams)
    }

    async fn drop(&mut self, this: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        HostOutgoingDatagramStream::drop(&mut self.sockets, this).await
    }

    as_before! { HostOutgoingDatagramStream:
        fn check_send(this) -> SocketResult<u64>;
        fn subscribe(this) -> wasmtime::Result<Resource<DynPollable>>;
    }
}
