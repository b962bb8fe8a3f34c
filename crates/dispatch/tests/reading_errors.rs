//! Errors are read as they were written, also where `main` returns them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::error::Error;
use std::io;
use std::path::PathBuf;

use keydispatch::testkit::AuthorityError;
use keydispatch::{
    AddError, BindError, BroadcastError, CallError, CastError, ConfigError, EntryError, Key,
    KeyError, NameError, NoService, NodeName, RegistryError, SeedError, ServeError, SettingsError,
    StartError, TlsError, UpdateError,
};

fn reads_as_written<E: Error>(error: E) {
    assert_eq!(format!("{error:?}"), error.to_string());
    assert_eq!(format!("{error:#?}"), error.to_string());
}

/// What `main() -> Result<(), BoxError>` prints after `Error: `.
fn printed_by_main(error: impl Into<keydispatch::BoxError>) -> String {
    format!("{:?}", error.into())
}

fn name_error() -> NameError {
    NodeName::try_new("").unwrap_err()
}

fn key_error() -> KeyError {
    struct Broken;
    impl serde::Serialize for Broken {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("broken on purpose"))
        }
    }
    Key::of(&Broken).unwrap_err()
}

fn call_error() -> CallError {
    CallError::Overloaded {
        node: NodeName::try_new("a").unwrap(),
    }
}

#[test]
fn every_public_error_prints_by_debug_what_it_prints_by_display() {
    let bind = || BindError::Taken {
        address: "127.0.0.1:7400".into(),
    };
    let settings = || SettingsError::OutOfBounds {
        setting: "down_period",
        value: "1ms".into(),
        low: "600ms".into(),
        high: "7d".into(),
    };
    let tls = || TlsError::Read {
        path: PathBuf::from("ca.pem"),
        source: io::Error::from(io::ErrorKind::NotFound),
    };
    let seed = || SeedError::NoPort { seed: "a".into() };
    reads_as_written(name_error());
    reads_as_written(key_error());
    reads_as_written(settings());
    reads_as_written(EntryError::Weight { weight: 0 });
    reads_as_written(AddError::NodeFull);
    reads_as_written(UpdateError::Unknown { sequence: 1 });
    reads_as_written(seed());
    reads_as_written(bind());
    reads_as_written(tls());
    reads_as_written(AuthorityError::from(name_error()));
    reads_as_written(ConfigError::NoTls);
    reads_as_written(ConfigError::from(settings()));
    reads_as_written(StartError::from(ConfigError::NoTls));
    reads_as_written(StartError::from(seed()));
    reads_as_written(StartError::from(tls()));
    reads_as_written(StartError::from(bind()));
    reads_as_written(RegistryError::NodeStopped);
    reads_as_written(RegistryError::from(name_error()));
    reads_as_written(ServeError::Start("no disk".into()));
    reads_as_written(ServeError::from(RegistryError::NodeStopped));
    reads_as_written(call_error());
    // The message that it gives back need not print at all.
    struct Silent;
    reads_as_written(CastError {
        error: call_error(),
        message: Silent,
    });
    reads_as_written(BroadcastError::NotSent(call_error()));
    reads_as_written(NoService {
        service_type: "uploader".into(),
    });
}

#[test]
fn what_main_returns_says_what_to_do() {
    let printed = printed_by_main(StartError::Config(ConfigError::NoTls));
    assert!(
        printed.contains("node.plaintext = true") && !printed.contains("NoTls"),
        "{printed}"
    );
}
