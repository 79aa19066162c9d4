//! The bytes of every header, kept: services of other versions and languages
//! depend on them.

use proptest::prelude::*;

use super::*;

fn instance(name: &str) -> InstanceName {
    name.parse().unwrap()
}

fn all() -> Vec<(Header<'static>, &'static str)> {
    vec![
        (
            Header::Register(Register {
                version: 1,
                methods: vec!["quote".into(), "ping".into()],
                capacity: Some(8),
                endpoint: Some("tcp://127.0.0.1:9001".into()),
            }),
            r#"{"kind":"register","version":1,"methods":["quote","ping"],"capacity":8,"endpoint":"tcp://127.0.0.1:9001"}"#,
        ),
        (
            Header::Register(Register {
                version: 1,
                ..Register::default()
            }),
            r#"{"kind":"register","version":1,"methods":[]}"#,
        ),
        (
            Header::Registered(Registered {
                version: 1,
                incarnation: 4,
                heartbeat_ms: 5000,
                direct_key: None,
            }),
            r#"{"kind":"registered","version":1,"incarnation":4,"heartbeat_ms":5000}"#,
        ),
        (
            Header::Registered(Registered {
                version: 1,
                incarnation: 4,
                heartbeat_ms: 5000,
                direct_key: Some("00ff".into()),
            }),
            r#"{"kind":"registered","version":1,"incarnation":4,"heartbeat_ms":5000,"direct_key":"00ff"}"#,
        ),
        (Header::Part { id: 9 }, r#"{"kind":"part","id":9}"#),
        (
            Header::Credit {
                id: 9,
                bytes: 65_536,
            },
            r#"{"kind":"credit","id":9,"bytes":65536}"#,
        ),
        (
            Header::Request(Request {
                id: 9,
                service: "pricing".into(),
                method: "list".into(),
                trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
                window: Some(262_144),
                ..Request::default()
            }),
            r#"{"kind":"request","id":9,"service":"pricing","method":"list","trace":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","window":262144}"#,
        ),
        (
            Header::Heartbeat { registered: None },
            r#"{"kind":"heartbeat"}"#,
        ),
        (
            Header::Heartbeat {
                registered: Some(false),
            },
            r#"{"kind":"heartbeat","registered":false}"#,
        ),
        (
            Header::Request(Request {
                id: 7,
                service: "pricing".into(),
                method: "quote".into(),
                budget_ms: Some(2000),
                ..Request::default()
            }),
            r#"{"kind":"request","id":7,"service":"pricing","method":"quote","budget_ms":2000}"#,
        ),
        (
            Header::Request(Request {
                id: 4_294_967_297,
                service: "".into(),
                method: "quote".into(),
                budget_ms: Some(1999),
                caller: Some("web.1".into()),
                ..Request::default()
            }),
            r#"{"kind":"request","id":4294967297,"method":"quote","budget_ms":1999,"caller":"web.1"}"#,
        ),
        (
            Header::Response(Response::new(7, Ok(()))),
            r#"{"kind":"response","id":7,"code":"ok"}"#,
        ),
        (
            Header::Response(Response::new(
                7,
                Err(Status::new(Code::ResourceExhausted, "256 calls are parked")),
            )),
            r#"{"kind":"response","id":7,"code":"resource_exhausted","message":"256 calls are parked"}"#,
        ),
        (
            Header::Response(Response {
                endpoints: vec![Endpoint {
                    instance: instance("pricing.2"),
                    endpoint: "unix:/x".into(),
                    ticket: None,
                }],
                ..Response::new(8, Ok(()))
            }),
            r#"{"kind":"response","id":8,"code":"ok","endpoints":[{"instance":"pricing.2","endpoint":"unix:/x"}]}"#,
        ),
        (
            Header::Response(Response {
                endpoints: vec![Endpoint {
                    instance: instance("pricing.2"),
                    endpoint: "ipc:///x".into(),
                    ticket: Some("1700000000.ab".into()),
                }],
                ..Response::new(8, Ok(()))
            }),
            r#"{"kind":"response","id":8,"code":"ok","endpoints":[{"instance":"pricing.2","endpoint":"ipc:///x","ticket":"1700000000.ab"}]}"#,
        ),
        (Header::Cancel { id: 7 }, r#"{"kind":"cancel","id":7}"#),
        (
            Header::Resolve {
                id: 8,
                service: "pricing".into(),
            },
            r#"{"kind":"resolve","id":8,"service":"pricing"}"#,
        ),
        (
            Header::Goaway {
                reason: "the bridge ends".into(),
                ends: true,
            },
            r#"{"kind":"goaway","reason":"the bridge ends","ends":true}"#,
        ),
        (
            Header::Goaway {
                reason: "db.1 is being stopped".into(),
                ends: false,
            },
            r#"{"kind":"goaway","reason":"db.1 is being stopped"}"#,
        ),
    ]
}

/// MessagePack of a JSON text, as any other implementation writes it.
fn packed(json: &str) -> Vec<u8> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    rmp_serde::to_vec_named(&value).unwrap()
}

#[test]
fn every_kind_travels_as_the_map_that_is_written_here() {
    for (header, json) in all() {
        let frame = header.encode();
        assert_eq!(frame, packed(json), "{json}");
        assert_eq!(Header::decode(&frame).unwrap(), header);
    }
}

#[test]
fn golden_bytes() {
    let request = Header::Request(Request {
        id: 7,
        service: "pricing".into(),
        method: "quote".into(),
        budget_ms: Some(2000),
        ..Request::default()
    });
    let bytes = b"\x85\xa4kind\xa7request\xa2id\x07\xa7service\xa7pricing\xa6method\xa5quote\xa9budget_ms\xcd\x07\xd0";
    assert_eq!(request.encode(), bytes);
}

#[test]
fn what_a_newer_version_adds_is_ignored() {
    let frame = packed(r#"{"kind":"cancel","id":7,"priority":[1,{"x":2}]}"#);
    assert_eq!(Header::decode(&frame).unwrap(), Header::Cancel { id: 7 });
    let frame = packed(r#"{"kind":"stream","id":7}"#);
    assert!(
        matches!(Header::decode(&frame), Err(HeaderError::UnknownKind(kind)) if kind == "stream")
    );
}

#[test]
fn what_is_missing_or_malformed_is_named() {
    let error = |json: &str| Header::decode(&packed(json)).unwrap_err().to_string();
    assert_eq!(
        error(r#"{"kind":"request","method":"x"}"#),
        "a request without id"
    );
    assert_eq!(
        error(r#"{"kind":"credit","id":1}"#),
        "a credit without bytes"
    );
    assert_eq!(
        error(r#"{"kind":"response","id":1}"#),
        "a response without code"
    );
    assert_eq!(error(r#"{"id":1}"#), "not a header");
    assert_eq!(error(r#"{"kind":"cancel","id":"x"}"#), "not a header");
    assert_eq!(error(r#"{"kind":"cancel","id":-1}"#), "not a header");
    assert_eq!(error(r#"7"#), "not a header");
    let long = vec![0x90; MAX_HEADER_BYTES + 1];
    assert!(matches!(
        Header::decode(&long),
        Err(HeaderError::TooLong { .. })
    ));
    // A length that the frame does not have must not be believed.
    assert!(Header::decode(&[0xdf, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(Header::decode(&[]).is_err());
}

proptest! {
    #[test]
    fn random_frames_never_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::decode(&frame);
    }

    #[test]
    fn damaged_headers_never_panic(which in 0..19_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut frame = all()[which].0.encode();
        let at = at.index(frame.len());
        frame[at] = byte;
        let _ = Header::decode(&frame);
    }
}

#[test]
fn a_code_of_a_later_version_is_unknown() {
    let frame = rmp_serde::to_vec_named(&serde_json::json!({
        "kind": "response", "id": 7, "code": "no_such_code", "message": "why"
    }))
    .unwrap();
    let Header::Response(response) = Header::decode(&frame).unwrap() else {
        panic!("a response");
    };
    assert_eq!(
        (response.id, response.code, response.message.as_ref()),
        (7, Code::Unknown, "why")
    );
}
