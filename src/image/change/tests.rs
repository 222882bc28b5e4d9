use super::*;

fn base() -> Config {
    let config = json!({
        "Cmd": ["sh"], "Env": ["PATH=/bin", "A=1"], "Labels": { "kept": "x" }, "WorkingDir": "/srv",
        "Unknown": { "nested": [1] }, "Volumes": null, "OnBuild": ["RUN a"],
    });
    config.as_object().unwrap().clone()
}

fn changed(lines: &[&str]) -> Result<Config, InvalidChange> {
    let changes = lines.iter().map(|line| Change::parse(line)).collect::<Result<Vec<_>, _>>()?;
    let mut config = base();
    apply(&changes, &mut config)?;
    Ok(config)
}

#[test]
fn every_verb_changes_its_field_and_no_other() {
    let cases = [
        (r#"CMD ["a", "b c"]"#, "Cmd", json!(["a", "b c"])),
        ("CMD echo \"$A\"  x", "Cmd", json!(["/bin/sh", "-c", "echo \"$A\"  x"])),
        ("cmd [ -f /x ] && y", "Cmd", json!(["/bin/sh", "-c", "[ -f /x ] && y"])),
        ("CMD=/bin/bash", "Cmd", json!(["/bin/sh", "-c", "/bin/bash"])),
        ("ENV B=2", "Env", json!(["PATH=/bin", "A=1", "B=2"])),
        ("ENV A=$A:2 C='3 4' D=\"$PATH\" E=x\\ y", "Env", json!(["PATH=/bin", "A=1:2", "C=3 4", "D=/bin", "E=x y"])),
        ("ENV A 1  2", "Env", json!(["PATH=/bin", "A=1  2"])),
        (
            "EXPOSE 80 53/UDP 8000-8002",
            "ExposedPorts",
            json!({"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}),
        ),
        ("LABEL a=b \"c d\"='e f'", "Labels", json!({"kept": "x", "a": "b", "c d": "e f"})),
        ("LABEL kept y z", "Labels", json!({"kept": "y z"})),
        ("ONBUILD RUN b", "OnBuild", json!(["RUN a", "RUN b"])),
        ("STOPSIGNAL SIGQUIT", "StopSignal", json!("SIGQUIT")),
        ("STOPSIGNAL 9", "StopSignal", json!("9")),
        ("USER 1:2", "User", json!("1:2")),
        ("VOLUME /a /b", "Volumes", json!({"/a": {}, "/b": {}})),
        (r#"VOLUME ["/a", "/b c"]"#, "Volumes", json!({"/a": {}, "/b c": {}})),
        ("WORKDIR /x", "WorkingDir", json!("/x")),
        ("WORKDIR x/../y", "WorkingDir", json!("/srv/y")),
        ("HEALTHCHECK NONE", "Healthcheck", json!({"Test": ["NONE"]})),
        (
            "HEALTHCHECK --interval=5s --retries=3 CMD [\"a\"]",
            "Healthcheck",
            json!({"Test": ["CMD", "a"], "Interval": 5_000_000_000u64, "Retries": 3}),
        ),
        ("HEALTHCHECK CMD curl -f x || exit 1", "Healthcheck", json!({"Test": ["CMD-SHELL", "curl -f x || exit 1"]})),
    ];
    for (line, field, expected) in cases {
        let mut config = changed(&[line]).unwrap();
        assert_eq!(config.remove(field), Some(expected), "{line}");
        let mut rest = base();
        rest.remove(field);
        assert_eq!(config, rest, "{line}");
    }
}

#[test]
fn an_entry_point_takes_no_other_s_arguments() {
    assert_eq!(changed(&["ENTRYPOINT [\"e\"]"]).unwrap().get("Cmd"), None);
    for order in [["CMD [\"c\"]", "ENTRYPOINT [\"e\"]"], ["ENTRYPOINT [\"e\"]", "CMD [\"c\"]"]] {
        let config = changed(&order).unwrap();
        assert_eq!((&config["Cmd"], &config["Entrypoint"]), (&json!(["c"]), &json!(["e"])));
    }
    assert_eq!(changed(&["CMD []"]).unwrap().get("Cmd"), None);
}

#[test]
fn later_changes_see_earlier_ones() {
    let config = changed(&["ENV X=/a", "WORKDIR $X", "WORKDIR b", "VOLUME ${X}/v", "ENV X=$X/c"]).unwrap();
    assert_eq!(config["WorkingDir"], "/a/b");
    assert_eq!(config["Volumes"], json!({"/a/v": {}}));
    assert_eq!(config["Env"], json!(["PATH=/bin", "A=1", "X=/a/c"]));
}

#[test]
fn the_image_s_shell_runs_commands() {
    let mut config = base();
    config.insert("Shell".to_owned(), json!(["/bin/bash", "-ec"]));
    apply(&[Change::parse("CMD x").unwrap()], &mut config).unwrap();
    assert_eq!(config["Cmd"], json!(["/bin/bash", "-ec", "x"]));
}

#[test]
fn what_is_wrong_is_told_with_its_verb() {
    let cases = [
        ("", "there is no change"),
        ("FOO x", "FOO x"),
        ("CMD", "CMD"),
        ("RUN ls", "RUN ls"),
        ("USER  ", "says nothing"),
        ("CMD [\"a\",]", "no JSON array"),
        ("CMD ['a']", "no JSON array"),
        ("ENTRYPOINT [1]", "strings"),
        ("ENV A", "NAME=VALUE"),
        ("ENV A=1 B", "\"B\" is not"),
        ("ENV =1", "a name is empty"),
        ("ENV A='x", "not closed"),
        ("LABEL x", "NAME=VALUE"),
        ("EXPOSE http", "no port"),
        ("EXPOSE 0", "no port"),
        ("EXPOSE 65536", "no port"),
        ("EXPOSE 9-8", "no port"),
        ("EXPOSE 80/icmp", "no port"),
        ("EXPOSE +80", "no port"),
        ("STOPSIGNAL SIGFOO", "signal"),
        ("STOPSIGNAL 65", "signal"),
        ("VOLUME []", "takes paths"),
        ("VOLUME [\"\"]", "takes paths"),
        ("VOLUME /a \"/b c\"", "not closed"),
        ("ONBUILD FROM x", "cannot wait"),
        ("ONBUILD FOO", "no FOO"),
        ("HEALTHCHECK", "says nothing"),
        ("HEALTHCHECK CMD", "it takes NONE"),
        ("HEALTHCHECK NONE x", "it takes NONE"),
        ("HEALTHCHECK --interval=5 CMD x", "--interval"),
        ("HEALTHCHECK --retries=0 CMD x", "--retries"),
        ("HEALTHCHECK --foo=1 CMD x", "no --foo"),
        ("WORKDIR ''", "empty"),
    ];
    for (line, expected) in cases {
        let error = Change::parse(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line:?}: {error}");
        let verb = line.split(' ').next().unwrap();
        assert!(error.contains(verb), "{line:?}: {error}");
    }
    // What a variable makes of it is known when the image is.
    let port = Change::parse("EXPOSE $A").unwrap();
    assert!(apply(std::slice::from_ref(&port), &mut base()).is_ok());
    assert!(apply(&[port], &mut Config::new()).unwrap_err().to_string().contains("EXPOSE"));
}

#[test]
fn fields_of_another_type_are_made_anew() {
    let mut config = json!({"Env": null, "Labels": 3, "OnBuild": null}).as_object().unwrap().clone();
    let changes = ["ENV A=1", "LABEL a=b", "ONBUILD RUN x"].map(|line| Change::parse(line).unwrap());
    apply(&changes, &mut config).unwrap();
    assert_eq!(Value::Object(config), json!({"Env": ["A=1"], "Labels": {"a": "b"}, "OnBuild": ["RUN x"]}));
}
