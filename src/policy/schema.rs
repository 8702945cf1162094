//! `handfast policy schema`: what documents look like, for editors, validators and clusters.

use clap::{Args, ValueEnum};
use handfast_policies::{Kind, custom_resource_definition, json_schema};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  handfast policy schema --kind CiliumNetworkPolicy > CiliumNetworkPolicy.json\n  handfast policy schema --crd | kubectl apply --filename -"
)]
pub(super) struct SchemaArgs {
    /// The kind of document
    #[arg(long, value_enum, default_value_t)]
    kind: KindArg,
    /// Print the CustomResourceDefinition of HandfastPolicy in place of a JSON Schema
    #[arg(long, conflicts_with = "kind")]
    crd: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
#[expect(clippy::enum_variant_names, reason = "the kinds' own names")]
enum KindArg {
    #[default]
    HandfastPolicy,
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    NetworkPolicy,
}

pub(super) fn run(args: &SchemaArgs) -> anyhow::Result<()> {
    if args.crd {
        out!(
            "{}",
            serde_norway::to_string(&custom_resource_definition())?
        );
        return Ok(());
    }
    let kind = match args.kind {
        KindArg::HandfastPolicy => Kind::HandfastPolicy,
        KindArg::CiliumNetworkPolicy => Kind::CiliumNetworkPolicy,
        KindArg::CiliumClusterwideNetworkPolicy => Kind::CiliumClusterwideNetworkPolicy,
        KindArg::NetworkPolicy => Kind::NetworkPolicy,
    };
    outln!("{}", serde_json::to_string_pretty(&json_schema(kind))?);
    Ok(())
}
