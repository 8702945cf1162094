//! One rule: who, which ports, and what is asked of the flow.

use crate::document::{PortRange, Rule};
use crate::model::{Direction, Encryption, RuleRef, Verdict};
use crate::read::authentication::{self, Asked};
use crate::read::cursor::{Cursor, Fields, Schema};
use crate::read::dialect::{Dialect, EGRESS_DENY, INGRESS_DENY};
use crate::read::peers::{self, Names};
use crate::read::ports;
use crate::read::selector::Scope;
use crate::selector::Peers;

const FROM: Names = Names {
    endpoints: "fromEndpoints",
    cidr: "fromCIDR",
    cidr_set: "fromCIDRSet",
};
const TO: Names = Names {
    endpoints: "toEndpoints",
    cidr: "toCIDR",
    cidr_set: "toCIDRSet",
};

static ENCRYPTION: Schema = Schema {
    known: &["mode"],
    refused: &[],
};

/// Every rule of a spec; `None` if one was wrong.
pub(crate) fn all(
    fields: &Fields<'_>,
    dialect: &'static Dialect,
    scope: &Scope,
) -> Option<Vec<Rule>> {
    use {Direction::*, Verdict::*};
    let lists = [
        ("ingress", Ingress, Allow, &dialect.ingress),
        ("ingressDeny", Ingress, Deny, &INGRESS_DENY),
        ("egress", Egress, Allow, &dialect.egress),
        ("egressDeny", Egress, Deny, &EGRESS_DENY),
    ];
    let mut rules = Vec::new();
    for (name, direction, verdict, schema) in lists {
        let Some(list) = fields.get(name) else {
            continue;
        };
        let reader = Reader {
            dialect,
            schema,
            scope,
            direction,
            verdict,
        };
        rules.extend(list.items()?.iter().map(|item| reader.rule(item)));
    }
    if rules.is_empty() {
        fields.lacking(
            "there is no rule, so the policy has no effect: to deny everything in a direction, write one empty rule \
             there, such as ingress: [{}]",
        );
    }
    rules.into_iter().collect()
}

/// What one list of rules has in common.
struct Reader<'a> {
    dialect: &'static Dialect,
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
        let asked = match fields.get("authentication") {
            Some(cursor) => authentication::read(&cursor, self.dialect),
            None => Some(Asked::default()),
        };
        let encryption = match fields.get("encryption") {
            Some(cursor) => encryption(&cursor).map(Some),
            None => Some(None),
        };
        let (peers, ports, asked, encryption) = (peers?, ports?, asked?, encryption?);
        let named = ports.is_some() || asked.ids.is_some() || !matches!(peers, Peers::Any);
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
            peers: if named {
                peers
            } else {
                Peers::Endpoints(Vec::new())
            },
            ids: asked.ids,
            ports: ports.unwrap_or_else(|| vec![PortRange::ALL]),
            auth: asked.mode,
            max_age: asked.max_age,
            encryption,
            field: cursor.path.clone(),
            line: cursor.node.at.line,
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
