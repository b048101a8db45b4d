//! `wasi:sockets/ip-name-lookup` 0.2 and 0.3 by the pod's own names ([`crate::names`]).

use std::{net::IpAddr, vec};

use tokio::{sync::oneshot, task::AbortHandle};
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::{
    p2::{
        self, DynPollable, Pollable, SocketError, SocketResult,
        bindings::sockets::{
            ip_name_lookup::{self, HostResolveAddressStream, ResolveAddressStream},
            network::{ErrorCode, IpAddress, Network as NetworkHandle},
        },
    },
    p3::bindings::sockets::{ip_name_lookup as p3, types::IpAddress as P3IpAddress},
};

use super::{PodSockets, PodSocketsView, pod_sockets};
use crate::{names::LookupError, state::State};

pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    ip_name_lookup::add_to_linker::<_, PodSockets>(linker, pod_sockets)?;
    p3::add_to_linker::<_, PodSockets>(linker, pod_sockets)
}

type Answer = Result<Vec<IpAddr>, LookupError>;

/// A lookup under way, and then what came of it. Stands in the table under the identifiers that the
/// bindings give to a type of wasmtime-wasi's, which nobody else can make.
struct Lookup {
    answer: Option<oneshot::Receiver<Answer>>,
    found: Option<Result<vec::IntoIter<IpAddr>, ErrorCode>>,
    task: AbortHandle,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl From<LookupError> for ErrorCode {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Invalid => Self::InvalidArgument,
            LookupError::Unknown => Self::NameUnresolvable,
            LookupError::Unavailable(_) => Self::TemporaryResolverFailure,
        }
    }
}

impl Lookup {
    fn set(&mut self, answer: Answer) {
        self.answer = None;
        self.found = Some(answer.map(Vec::into_iter).map_err(ErrorCode::from));
    }
}

fn lost() -> Answer {
    Err(LookupError::Unavailable("the lookup was dropped".into()))
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Some(answer) = &mut self.answer {
            let answer = answer.await.unwrap_or_else(|_| lost());
            self.set(answer);
        }
    }
}

fn ours(theirs: &Resource<ResolveAddressStream>) -> Resource<Lookup> {
    Resource::new_borrow(theirs.rep())
}

impl ip_name_lookup::Host for PodSocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<NetworkHandle>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        // Having a network is the permission to look names up.
        let _ = self.sockets.table.get(&network)?;
        let (sender, answer) = oneshot::channel();
        let pod = self.pod.clone();
        let task = tokio::spawn(async move {
            let _ = sender.send(pod.names.lookup(&pod.network, &name).await);
        });
        let lookup = self.sockets.table.push(Lookup {
            answer: Some(answer),
            found: None,
            task: task.abort_handle(),
        })?;
        Ok(Resource::new_own(lookup.rep()))
    }
}

impl HostResolveAddressStream for PodSocketsView<'_> {
    fn resolve_next_address(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> SocketResult<Option<IpAddress>> {
        let lookup = self.sockets.table.get_mut(&ours(&this))?;
        match lookup.answer.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Err(oneshot::error::TryRecvError::Empty)) => {
                return Err(ErrorCode::WouldBlock.into());
            }
            Some(Err(oneshot::error::TryRecvError::Closed)) => lookup.set(lost()),
            Some(Ok(answer)) => lookup.set(answer),
            None => {}
        }
        match &mut lookup.found {
            Some(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Some(Err(code)) => Err(SocketError::from(*code)),
            None => Err(ErrorCode::WouldBlock.into()),
        }
    }

    fn subscribe(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        p2::subscribe(self.sockets.table, ours(&this))
    }

    fn drop(&mut self, this: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.sockets
            .table
            .delete(Resource::<Lookup>::new_own(this.rep()))?;
        Ok(())
    }
}

impl p3::Host for PodSocketsView<'_> {}

impl p3::HostWithStore<State> for PodSockets {
    async fn resolve_addresses(
        store: &Accessor<State, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<P3IpAddress>, p3::ErrorCode>> {
        let pod = store.with(|mut view| view.get().pod.clone());
        let looked_up = pod.names.lookup(&pod.network, &name).await;
        Ok(match looked_up {
            Ok(addresses) => Ok(addresses.into_iter().map(P3IpAddress::from).collect()),
            Err(LookupError::Invalid) => Err(p3::ErrorCode::InvalidArgument),
            Err(LookupError::Unknown) => Err(p3::ErrorCode::NameUnresolvable),
            Err(LookupError::Unavailable(_)) => Err(p3::ErrorCode::TemporaryResolverFailure),
        })
    }
}
