//! TCP both ways over WASI 0.3: serve ADDRESS TEXT answers every connection, get ADDRESS prints what it is answered.

use std::net::{Ipv4Addr, SocketAddrV4};

use wasip3::sockets::types::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket,
};

struct Tcp;

wasip3::cli::command::export!(Tcp);

impl wasip3::exports::cli::run::Guest for Tcp {
    async fn run() -> Result<(), ()> {
        let args = wasip3::cli::environment::get_arguments();
        let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
        let done = match words[..] {
            ["serve", address, text] => serve(address, text).await,
            ["get", address] => get(address).await,
            _ => Err("usage: serve ADDRESS TEXT | get ADDRESS".to_owned()),
        };
        done.map_err(|error| eprintln!("tcp {}: {error}", words.join(" ")))
    }
}

async fn serve(address: &str, text: &str) -> Result<(), String> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(say)?;
    socket.bind(parse(address)?).map_err(say)?;
    let mut connections = socket.listen().map_err(say)?;
    println!(
        "listening on {}",
        print(socket.get_local_address().map_err(say)?)
    );
    while let Some(connection) = connections.next().await {
        println!(
            "connection from {}",
            print(connection.get_remote_address().map_err(say)?)
        );
        let (mut writer, reader) = wasip3::wit_stream::new();
        let sent = connection.send(reader);
        // A client that went away is its own business.
        let _ = writer.write_all(text.as_bytes().to_vec()).await;
        drop(writer);
        let _ = sent.await;
    }
    Ok(())
}

async fn get(address: &str) -> Result<(), String> {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).map_err(say)?;
    socket.connect(parse(address)?).await.map_err(say)?;
    let (answer, received) = socket.receive();
    println!("{}", String::from_utf8_lossy(&answer.collect().await));
    received.await.map_err(say)
}

fn parse(text: &str) -> Result<IpSocketAddress, String> {
    let address: SocketAddrV4 = text.parse().map_err(|error| format!("{error}"))?;
    let [a, b, c, d] = address.ip().octets();
    Ok(IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port: address.port(),
        address: (a, b, c, d),
    }))
}

fn print(address: IpSocketAddress) -> String {
    match address {
        IpSocketAddress::Ipv4(address) => {
            let (a, b, c, d) = address.address;
            SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), address.port).to_string()
        }
        IpSocketAddress::Ipv6(address) => format!("{address:?}"),
    }
}

fn say(error: ErrorCode) -> String {
    format!("{error:?}")
}
