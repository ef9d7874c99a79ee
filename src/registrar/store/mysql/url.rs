//! The URL of a MySQL server: `mysql://user:password@host:port/database`. For a cluster several hosts stand there, separated
//! by commas; one after the other is tried. After a `?` comes what the library takes and
//!
//! - `tls=off`, `tls=required` (encrypted, whoever the server is), `tls=verify` (its certificate is checked against `tls_ca`
//!   and the host's name against it);
//! - `tls_ca`, a file of certificates (PEM); `tls_cert` and `tls_key`, the client's own.
//!
//! Promise: no error repeats the password.

use std::path::PathBuf;

use mysql::{ClientIdentity, Opts, OptsBuilder, SslOpts};

use crate::registrar::store::{Kind, StoreError};

const FORM: &str = "mysql://user:password@host:port/database";

fn bad(text: String) -> StoreError {
    StoreError::new(Kind::Config, text)
}

/// The library's options for each host, and the place without user and password.
pub(super) fn read(url: &str) -> Result<(Vec<OptsBuilder>, String), StoreError> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let after = head.rfind('@').map_or("mysql://".len().min(head.len()), |at| at + 1);
    let (user, rest) = head.split_at(after);
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    let mut all = Vec::new();
    let mut places = Vec::new();
    for host in hosts.split(',') {
        let (opts, place) = read_one(&format!("{user}{host}/{database}?{query}"))?;
        all.push(opts);
        places.push(place);
    }
    Ok((all, format!("mysql://{}/{database}", places.join(","))))
}

fn read_one(url: &str) -> Result<(OptsBuilder, String), StoreError> {
    let (head, query) = url.split_once('?').unwrap_or((url, ""));
    let mut rest = String::new();
    let (mut tls, mut ca, mut cert, mut key) = (None, None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let slot = match name {
            "tls" => &mut tls,
            "tls_ca" => &mut ca,
            "tls_cert" => &mut cert,
            "tls_key" => &mut key,
            _ => {
                rest.push(if rest.is_empty() { '?' } else { '&' });
                rest.push_str(pair);
                continue;
            }
        };
        if value.is_empty() {
            return Err(bad(format!("the database's URL has {name} without a value")));
        }
        *slot = Some(value.to_owned());
    }
    // The library's message may repeat the URL, and with it the password.
    let opts = Opts::from_url(&format!("{head}{rest}"))
        .map_err(|_| bad(format!("the database's URL cannot be read: {FORM}")))?;
    if opts.get_db_name().is_none_or(str::is_empty) {
        return Err(bad(format!("the database's URL names no database: {FORM}")));
    }
    let place = format!("{}:{}", opts.get_ip_or_hostname(), opts.get_tcp_port());
    let identity = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(ClientIdentity::new(PathBuf::from(cert), PathBuf::from(key))),
        _ => return Err(bad("the database's URL needs both tls_cert and tls_key, or neither".into())),
    };
    let ssl = match tls.as_deref() {
        None | Some("off") => {
            if ca.is_some() || identity.is_some() {
                return Err(bad("the database's URL names certificates without tls=required or tls=verify".into()));
            }
            None
        }
        Some("required") => {
            Some(SslOpts::default().with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true))
        }
        Some("verify") => Some(SslOpts::default()),
        Some(_) => return Err(bad("tls in the database's URL is off, required or verify".into())),
    };
    let ssl = ssl.map(|ssl| ssl.with_root_cert_path(ca.map(PathBuf::from)).with_client_identity(identity));
    Ok((OptsBuilder::from_opts(opts).ssl_opts(ssl), place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_does_not_repeat_the_password() {
        for bad in [
            "mysql://u:secret@",
            "mysql://u:secret@h:x/d",
            "mysql://u:secret@h:3306",
            "mysql://u:secret@h/?a=b",
            "mysql://u:secret@h/d?tls=yes",
            "mysql://u:secret@h/d?tls=verify&tls_cert=/c",
            "mysql://u:secret@h/d?tls_ca=/c",
        ] {
            let error = read(bad).map(|_| ()).expect_err(bad);
            assert_eq!(error.kind(), Kind::Config);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let (_, place) = read("mysql://u:secret@db.example:3307/sip").expect("good");
        assert_eq!(place, "mysql://db.example:3307/sip");
        let (opts, place) = read("mysql://u:secret@db.example/sip?tls=verify&tls_ca=/c&compress=fast").expect("good");
        assert_eq!(place, "mysql://db.example:3306/sip");
        let ssl = Opts::from(opts[0].clone()).get_ssl_opts().cloned().expect("TLS");
        let (hosts, place) = read("mysql://u:p@a,b:3307/sip").expect("good");
        assert_eq!((hosts.len(), &place[..]), (2, "mysql://a:3306,b:3307/sip"));
        assert_eq!((ssl.root_cert_path(), ssl.accept_invalid_certs()), (Some(std::path::Path::new("/c")), false));
    }
}
