//! Selectors as users write them.

use serde_json::{Value, json};

use super::*;

#[test]
fn label_selectors_choose_as_kubectl_users_expect() {
    let labels = json!({"app": "web", "tier": "front", "n": "5"});
    let labels = labels.as_object();
    for (selector, is_match) in [
        ("", true),
        ("app=web", true),
        ("app==web", true),
        ("app = web , tier != back", true),
        ("app=db", false),
        ("app!=db", true),
        ("missing!=x", true),
        ("app in (web, db)", true),
        ("app in (db)", false),
        ("app notin (db,cache)", true),
        ("missing notin (x)", true),
        ("app", true),
        ("!app", false),
        ("!missing", true),
        ("app,tier,!x", true),
        ("n>4", true),
        ("n<5", false),
        ("app=", false),
        ("missing=", false),
        ("app in (web),tier=front,n", true),
    ] {
        let parsed = LabelSelector::parse(selector).expect(selector);
        assert_eq!(parsed.matches(labels), is_match, "{selector}");
        let again =
            LabelSelector::parse(&parsed.to_string()).expect("what is printed is read again");
        assert_eq!(again.matches(labels), is_match, "{selector} → {parsed}");
    }
}

#[test]
fn label_selectors_that_make_no_sense_are_refused() {
    for (selector, text) in [
        ("a=b,", "found '', expected: identifier after ','"),
        (
            "=b",
            "unable to parse requirement: found '=', expected: identifier",
        ),
        (
            "a in b",
            "unable to parse requirement: found 'b' expected: '('",
        ),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',', or ')'",
        ),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
    ] {
        assert_eq!(LabelSelector::parse(selector).expect_err(selector), text);
    }
    let error = LabelSelector::parse("a=b@").expect_err("@ may not be in a label");
    assert!(error.starts_with(
        "unable to parse requirement: values[0][a]: Invalid value: \"b@\": a valid label must be an empty string"
    ));
}

#[test]
fn a_selector_object_is_read_like_its_text() {
    let selector = LabelSelector::from_value(&json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}],
    }))
    .expect("selector");
    assert_eq!(selector.to_string(), "app=web,tier notin (back)");
    assert!(selector.matches(json!({"app": "web"}).as_object()));
    assert!(
        !LabelSelector::from_value(&Value::Null)
            .expect("null")
            .matches(None)
    );
    assert!(
        LabelSelector::from_value(&json!({}))
            .expect("empty")
            .matches(None)
    );
    assert!(
        LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "In"}]}))
            .is_err()
    );
    assert_eq!(
        LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})),
        Err("\"Is\" is not a valid label selector operator".to_owned())
    );
}

#[test]
fn field_selectors_are_read_with_escapes() {
    let selector = FieldSelector::parse("a=b,c==d,e!=f,g=h\\,i\\=").expect("selector");
    assert_eq!(selector.to_string(), "a=b,c=d,e!=f,g=h\\,i\\=");
    assert_eq!(selector.required_value("g"), Some("h,i="));
    assert_eq!(selector.required_value("e"), None);
    assert_eq!(
        FieldSelector::parse("x").expect_err("no operator"),
        "invalid selector: 'x'; can't understand 'x'"
    );
    assert!(FieldSelector::parse("").expect("empty").is_everything());
}

#[test]
fn field_selectors_look_at_the_fields_of_the_resource() {
    let pods = crate::find("", "v1", "pods").expect("pods");
    let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "x"}, "status": {}});
    for (selector, is_match) in [
        ("metadata.name=a", true),
        ("metadata.name!=a", false),
        ("metadata.namespace=n,spec.nodeName=x", true),
        ("spec.nodeName=", false),
        ("status.phase!=Running", true),
    ] {
        let selector = FieldSelector::parse(selector).expect(selector);
        selector.check(pods).expect("fields of pods");
        assert_eq!(selector.matches(pods, &pod), is_match, "{selector}");
    }
    let check = |plural, selector| {
        FieldSelector::parse(selector)
            .expect("selector")
            .check(crate::find("", "v1", plural).expect("resource"))
    };
    assert_eq!(
        check("pods", "spec.foo=a"),
        Err("field label not supported: spec.foo".to_owned())
    );
    assert_eq!(
        check("configmaps", "data=a"),
        Err("\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"".to_owned())
    );
}
