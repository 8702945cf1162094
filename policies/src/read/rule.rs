//! One rule: who, which ports, and what is asked of the flow.

use crate::document::{Denies, PortMatch, PortRange, Rule};
use crate::model::{Direction, Encryption, RuleRef, Verdict};
use crate::read::authentication::{self, Asked};
use crate::read::cursor::{Cursor, Fields};
use crate::read::dialect::{EGRESS_DENY, INGRESS_DENY, Rules};
use crate::read::peers::{self, Names};
use crate::read::selector::Scope;
use crate::read::shape::{Schema, Shape, field};
use crate::read::{icmps, ports};
use crate::selector::Peers;

const FROM: Names = Names {
    endpoints: "fromEndpoints",
    entities: "fromEntities",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
};
const TO: Names = Names {
    endpoints: "toEndpoints",
    entities: "toEntities",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
};

pub(crate) static ENCRYPTION: Schema = Schema {
    about: "Whether the flow must go through a tunnel.",
    known: &[field(
        "mode",
        Shape::Choice(&["required", "disabled"]),
        "Between managed nodes, required is what nothing means.",
    )
    .required()],
    refused: &[],
};

pub(crate) static DEFAULT_DENY: Schema = Schema {
    about: "Whether a direction denies what no rule allows.",
    known: &[
        field("ingress", Shape::Bool, "For what is received."),
        field("egress", Shape::Bool, "For what is sent."),
    ],
    refused: &[],
};

/// Every rule of a spec, and whether it denies what they do not allow; `None` if something was wrong.
pub(crate) fn all(
    fields: &Fields<'_>,
    rules: &'static Rules,
    scope: &Scope,
) -> Option<(Vec<Rule>, Denies)> {
    use {Direction::*, Verdict::*};
    let lists = [
        ("ingress", Ingress, Allow, rules.ingress),
        ("ingressDeny", Ingress, Deny, &INGRESS_DENY),
        ("egress", Egress, Allow, rules.egress),
        ("egressDeny", Egress, Deny, &EGRESS_DENY),
    ];
    let mut read = Vec::new();
    for (name, direction, verdict, schema) in lists {
        let Some(list) = fields.get(name) else {
            continue;
        };
        let reader = Reader {
            rules,
            schema,
            scope,
            direction,
            verdict,
        };
        read.extend(list.items()?.iter().map(|item| reader.rule(item)));
    }
    let is_empty = read.is_empty();
    let read: Vec<_> = read.into_iter().collect::<Option<_>>()?;
    let has = |direction| read.iter().any(|rule: &Rule| rule.direction == direction);
    let denies = denies(fields, has(Ingress), has(Egress))?;
    if is_empty && !denies.ingress && !denies.egress {
        fields.lacking(
            "there is no rule, so the policy has no effect: to deny everything in a direction, write one empty rule \
             there, such as ingress: [{}]",
        );
    }
    Some((read, denies))
}

/// A direction with a rule is under default deny, unless the spec says otherwise.
fn denies(fields: &Fields<'_>, ingress: bool, egress: bool) -> Option<Denies> {
    let Some(said) = fields.get("enableDefaultDeny") else {
        return Some(Denies { ingress, egress });
    };
    let said = said.fields(&DEFAULT_DENY)?;
    let of = |name, otherwise| match said.get(name) {
        Some(cursor) => cursor.boolean(),
        None => Some(otherwise),
    };
    let (ingress, egress) = (of("ingress", ingress), of("egress", egress));
    Some(Denies {
        ingress: ingress?,
        egress: egress?,
    })
}

/// What one list of rules has in common.
struct Reader<'a> {
    rules: &'static Rules,
    schema: &'static Schema,
    scope: &'a Scope,
    direction: Direction,
    verdict: Verdict,
}

impl Reader<'_> {
    fn rule(&self, cursor: &Cursor<'_>) -> Option<Rule> {
        let fields = cursor.fields(self.schema)?;
        let names = match self.direction {
            Direction::Ingress => &FROM,
            Direction::Egress => &TO,
        };
        let peers = peers::read(&fields, names, self.scope);
        let ports = ports::read(&fields);
        let messages = icmps::read(&fields, self.verdict);
        let asked = match fields.get("authentication") {
            Some(cursor) => authentication::read(&cursor, self.rules),
            None => Some(Asked::default()),
        };
        let encryption = match fields.get("encryption") {
            Some(cursor) => encryption(&cursor).map(Some),
            None => Some(None),
        };
        let (peers, ports, messages) = (peers?, ports?, messages?);
        let (asked, encryption) = (asked?, encryption?);
        let ports = ports.or(messages);
        let named = ports.is_some() || asked.ids.is_some() || peers.is_some();
        if !named && (asked.mode.is_some() || encryption.is_some()) {
            fields.lacking(format!(
                "the rule names neither peers nor ports, and such a rule allows nothing: add {} or toPorts",
                names.endpoints
            ));
            return None;
        }
        Some(Rule {
            direction: self.direction,
            verdict: self.verdict,
            // `{}` brings default deny and allows nothing, as in Cilium.
            peers: match peers {
                Some(peers) => peers,
                None if named => Peers::Any,
                None => Peers::Of(Vec::new()),
            },
            ids: asked.ids,
            ports: ports.unwrap_or_else(|| vec![PortMatch::Range(PortRange::ALL)]),
            auth: asked.mode,
            max_age: asked.max_age,
            encryption,
            field: cursor.path.clone(),
            line: cursor.node.at.line,
            is_implied: false,
            number: RuleRef(0),
        })
    }
}

fn encryption(cursor: &Cursor<'_>) -> Option<Encryption> {
    cursor
        .fields(&ENCRYPTION)?
        .need("mode", "write required or disabled")?
        .choice(
            "mode",
            &[
                ("required", Encryption::Required),
                ("disabled", Encryption::Disabled),
            ],
        )
}
