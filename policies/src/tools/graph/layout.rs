//! Where nodes stand: in columns, callers left of those whom they call, neighbours at one height where it goes.

use crate::tools::graph::Graph;

/// Passes over the columns: more change little.
const PASSES: usize = 12;

/// Sizes, in the units of the picture.
pub(super) const WIDTH: f64 = 190.0;
pub(super) const HEIGHT: f64 = 34.0;
const COLUMN: f64 = 330.0;
const ROW: f64 = 62.0;
const MARGIN: f64 = 40.0;

/// The upper left corner of each node, and the size of the whole.
pub(super) struct Layout {
    pub(super) places: Vec<(f64, f64)>,
    pub(super) width: f64,
    pub(super) height: f64,
}

pub(super) fn layout(graph: &Graph) -> Layout {
    let columns = columns(graph);
    let mut rows = by_column(&columns);
    for pass in 0..PASSES {
        order(graph, &columns, &mut rows, pass % 2 == 0);
    }
    let tallest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let height = MARGIN * 2.0 + tallest as f64 * ROW;
    let mut places = vec![(0.0, 0.0); graph.nodes.len()];
    for (column, nodes) in rows.iter().enumerate() {
        let above = (height - nodes.len() as f64 * ROW) / 2.0;
        for (row, node) in nodes.iter().enumerate() {
            if let Some(place) = places.get_mut(*node) {
                let y = above + row as f64 * ROW + (ROW - HEIGHT) / 2.0;
                *place = (MARGIN + column as f64 * COLUMN, y);
            }
        }
    }
    Layout {
        places,
        width: MARGIN * 2.0 + (rows.len().max(1) - 1) as f64 * COLUMN + WIDTH,
        height,
    }
}

/// The column of each node: one more than that of its callers, edges that close a circle left aside.
fn columns(graph: &Graph) -> Vec<usize> {
    let count = graph.nodes.len();
    let mut callees = vec![Vec::new(); count];
    for edge in &graph.edges {
        if let (Some(list), true) = (callees.get_mut(edge.from), edge.from != edge.to)
            && !list.contains(&edge.to)
        {
            list.push(edge.to);
        }
    }
    // Nodes in the order in which a search leaves them, last first, is an order in which few edges go back.
    let mut state = vec![0_u8; count];
    let mut left = Vec::with_capacity(count);
    for root in 0..count {
        let mut stack = vec![(root, 0)];
        while let Some((node, at)) = stack.pop() {
            if at == 0 {
                if state.get(node).copied() != Some(0) {
                    continue;
                }
                set(&mut state, node, 1);
            }
            match callees.get(node).and_then(|list| list.get(at)) {
                Some(next) => {
                    stack.push((node, at + 1));
                    if state.get(*next).copied() == Some(0) {
                        stack.push((*next, 0));
                    }
                }
                None => {
                    set(&mut state, node, 2);
                    left.push(node);
                }
            }
        }
    }
    let mut rank = vec![0; count];
    for (place, node) in left.iter().rev().enumerate() {
        set(&mut rank, *node, place);
    }
    let mut columns = vec![0_usize; count];
    for node in left.iter().rev() {
        let own = columns.get(*node).copied().unwrap_or_default();
        for next in callees.get(*node).into_iter().flatten() {
            if rank.get(*next) > rank.get(*node)
                && let Some(column) = columns.get_mut(*next)
            {
                // A long chain would make a picture that nobody can look at.
                *column = (*column).max(own + 1).min(5);
            }
        }
    }
    columns
}

fn set<T>(list: &mut [T], at: usize, value: T) {
    if let Some(place) = list.get_mut(at) {
        *place = value;
    }
}

fn by_column(columns: &[usize]) -> Vec<Vec<usize>> {
    let count = columns.iter().max().map_or(0, |last| last + 1);
    let mut rows = vec![Vec::new(); count];
    for (node, column) in columns.iter().enumerate() {
        if let Some(row) = rows.get_mut(*column) {
            row.push(node);
        }
    }
    rows
}

/// Moves each node toward the middle of its neighbours in other columns.
fn order(graph: &Graph, columns: &[usize], rows: &mut [Vec<usize>], forward: bool) {
    let mut heights = vec![0.0; columns.len()];
    for row in rows.iter() {
        for (place, node) in row.iter().enumerate() {
            let height = place as f64 - row.len() as f64 / 2.0;
            set(&mut heights, *node, height);
        }
    }
    let mut sums = vec![(0.0, 0_u32); columns.len()];
    let mut pull = |node: usize, other: usize| {
        let (a, b) = (columns.get(node), columns.get(other));
        if (forward && b < a) || (!forward && b > a) {
            let height = heights.get(other).copied().unwrap_or_default();
            if let Some((sum, count)) = sums.get_mut(node) {
                *sum += height;
                *count += 1;
            }
        }
    };
    for edge in &graph.edges {
        pull(edge.from, edge.to);
        pull(edge.to, edge.from);
    }
    let wish = |node: usize| match sums.get(node) {
        Some((sum, count)) if *count > 0 => sum / f64::from(*count),
        _ => heights.get(node).copied().unwrap_or_default(),
    };
    for row in rows {
        row.sort_by(|a, b| wish(*a).total_cmp(&wish(*b)));
    }
}
