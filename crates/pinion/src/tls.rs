//! TLS: `pinion tls init` makes an authority of this machine and a certificate that it signed, and `serve --tls` listens with
//! any certificate. Knows PEM files and handshakes; refuses to know what is said over a connection.
//!
//! The official clients make a file only of an `https:` or `data:` address, so whoever wants addresses needs this.

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::failure::Failure;
use crate::out::print_line;
use crate::paths;

/// Of the data folder.
const FOLDER: &str = "tls";
const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
const CERTIFICATE: &str = "server.pem";
const KEY: &str = "server.key";

const AUTHORITY_DAYS: i64 = 3650;
/// Some systems trust no certificate that is valid for longer.
const CERTIFICATE_DAYS: i64 = 825;
/// Clocks of callers may be behind ours.
const BEHIND_DAYS: i64 = 1;

/// Of one connection, before it says anything.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that shake hands at once; others wait in the kernel's line.
const HANDSHAKES_AT_ONCE: usize = 256;

#[derive(Subcommand)]
pub enum Word {
    /// Make an authority, once, and a certificate for this machine that it signed: for `serve --tls`
    Init {
        /// The server's data folder; the files go into its `tls`
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// A name or address that callers use beside localhost, 127.0.0.1 and ::1. May be repeated
        #[arg(long, value_name = "NAME")]
        host: Vec<String>,
    },
}

/// What `serve` listens with, PEM files both.
#[derive(Args)]
pub struct Files {
    /// Listen with TLS: a certificate, with those that lead to its authority behind it, and its key, as PEM files
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
}

pub fn main(word: Word) -> Result<(), Failure> {
    let Word::Init { data, host } = word;
    let folder = paths::data(data).join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|error| about(&folder, error))?;
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter().chain(host).collect();
    let kept = make(&folder, names)?;
    let [authority, certificate, key] = [AUTHORITY, CERTIFICATE, KEY].map(|name| folder.join(name));
    let (authority, certificate, key) = (authority.display(), certificate.display(), key.display());
    eprintln!("pinion: {} {authority}; a new certificate {certificate}", if kept { "kept" } else { "made" });
    print_line!("pinion serve --tls {certificate} {key}");
    print_line!("export SSL_CERT_FILE={authority}        # Python clients, and OpenSSL");
    print_line!("export NODE_EXTRA_CA_CERTS={authority}  # Node");
    Ok(())
}

/// Whether the authority was there before: who trusts it need not be told again.
fn make(folder: &Path, names: Vec<String>) -> Result<bool, Failure> {
    let key_path = folder.join(AUTHORITY_KEY);
    let kept = match std::fs::read_to_string(&key_path) {
        Ok(pem) => Some(KeyPair::from_pem(&pem).map_err(|error| about(&key_path, error))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(about(&key_path, error)),
    };
    let was_there = kept.is_some();
    let authority_key = match kept {
        Some(key) => key,
        None => {
            let key = KeyPair::generate().map_err(Failure::failed)?;
            let authority = authority(&key)?.self_signed(&key).map_err(Failure::failed)?;
            write(&folder.join(AUTHORITY), &authority.pem(), 0o644)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            key
        }
    };
    let issuer = Issuer::new(authority(&authority_key)?, authority_key);
    let key = KeyPair::generate().map_err(Failure::failed)?;
    let mut params = CertificateParams::new(names.clone())
        .map_err(|error| Failure::BadInput(format!("--host {}: {error}", names.join(" "))))?;
    params.distinguished_name.push(DnType::CommonName, names[0].clone());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, CERTIFICATE_DAYS);
    let certificate = params.signed_by(&key, &issuer).map_err(Failure::failed)?;
    // The key first: a certificate without it is of no use.
    write(&folder.join(KEY), &key.serialize_pem(), 0o600)?;
    write(&folder.join(CERTIFICATE), &certificate.pem(), 0o644)?;
    Ok(was_there)
}

/// The same name for the same key, so that certificates signed later lead to what callers already trust.
fn authority(key: &KeyPair) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(Vec::new()).map_err(Failure::failed)?;
    let number: String = key.der_bytes().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, format!("Pinion on this machine, {number}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, AUTHORITY_DAYS);
    Ok(params)
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let now = std::time::SystemTime::now();
    params.not_before = (now - DAY * BEHIND_DAYS as u32).into();
    params.not_after = (now + DAY * days as u32).into();
}

/// Whole or not at all, and readable by whom `mode` says from the start.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let coming = path.with_extension("coming");
    let written = (|| {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&coming)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&coming, path)
    })();
    written.map_err(|error| about(path, error))
}

fn about(path: &Path, why: impl Display) -> Failure {
    Failure::Failed(format!("{}: {why}", path.display()))
}

impl Files {
    /// What to listen with; none for plain HTTP.
    pub fn read(&self) -> Result<Option<Arc<ServerConfig>>, Failure> {
        let Some([certificate, key]) = self.tls.as_deref() else { return Ok(None) };
        let refuse = |path: &Path, why: &dyn Display| Failure::BadInput(format!("--tls {}: {why}", path.display()));
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| refuse(certificate, &error))?;
        if chain.is_empty() {
            return Err(refuse(certificate, &"holds no certificate in PEM"));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| refuse(key, &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Failure::failed)?
            .with_no_client_auth();
        let mut config = config.with_single_cert(chain, private).map_err(|error| refuse(certificate, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

/// Connections whose handshake is done. A slow one keeps nobody else waiting.
pub struct Tls {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Tls {
    /// Called inside a tokio runtime.
    pub fn listen(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (send, ready) = mpsc::channel(1);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), send));
        Ok(Self { address, ready })
    }
}

/// Until nobody takes connections any more.
async fn accept(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    send: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let turns = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
    while let Ok(turn) = turns.clone().acquire_owned().await {
        let (stream, from) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = send.closed() => return,
        };
        let (acceptor, send) = (acceptor.clone(), send.clone());
        tokio::spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
            drop(turn);
            match shaken {
                Ok(Ok(stream)) => drop(send.send((stream, from)).await),
                Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
            }
        });
    }
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // Its task ends after us.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
