//! Where nodes stand and edges run: in columns, callers left of those whom they call. An edge that passes a column
//! has a place of its own there, so that it runs behind no node (Sugiyama, Tagawa and Toda, 1981).

use std::collections::HashMap;

use crate::tools::graph::Graph;

/// Passes over the columns: more change little.
const PASSES: usize = 16;

/// The most columns: a longer chain would make a picture that nobody can look at.
const MAX_COLUMNS: usize = 7;

/// Sizes, in the units of the picture.
pub(super) const WIDTH: f64 = 180.0;
pub(super) const HEIGHT: f64 = 36.0;
const COLUMN: f64 = 310.0;
const ROW: f64 = 66.0;
const PASSING: f64 = 30.0;
const MARGIN: f64 = 36.0;

/// A point of the picture.
pub(super) type Point = (f64, f64);

/// The upper left corner of each node, the points of each edge, and the size of the whole.
pub(super) struct Layout {
    pub(super) places: Vec<Point>,
    /// Pairs of points: each edge runs straight inside a pair, and curves from one to the next.
    pub(super) routes: Vec<Vec<(Point, Point)>>,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// What stands in columns: the nodes, then the places where edges pass.
struct Columns {
    column: Vec<usize>,
    rows: Vec<Vec<usize>>,
    /// Neighbours in the column before and after.
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
}

pub(super) fn layout(graph: &Graph) -> Layout {
    let nodes = graph.nodes.len();
    let mut columns = Columns::new(columns_of(graph));
    // Edges between the same two nodes pass at the same places.
    let mut passing: HashMap<(usize, usize), Vec<usize>> = HashMap::new();
    for edge in &graph.edges {
        let ends = (edge.from.min(edge.to), edge.from.max(edge.to));
        passing.entry(ends).or_insert_with(|| columns.connect(ends));
    }
    for pass in 0..PASSES {
        columns.order(pass % 2 == 0);
    }
    let (corners, height) = columns.place(nodes);
    let sides = Sides::new(graph, &columns, &passing, &corners);
    let routes = graph.edges.iter().enumerate().map(|(number, edge)| {
        let ends = (edge.from.min(edge.to), edge.from.max(edge.to));
        let mut by_the_way: Vec<_> = passing.get(&ends).cloned().unwrap_or_default();
        let first = by_the_way
            .first()
            .and_then(|place| columns.column.get(*place));
        let from = columns.column.get(edge.from);
        // The places were made from the left to the right.
        if first.is_some() && from > first {
            by_the_way.reverse();
        }
        route(edge, number, &by_the_way, &columns, &sides, &corners)
    });
    Layout {
        routes: routes.collect(),
        width: MARGIN * 2.0 + (columns.rows.len().max(1) - 1) as f64 * COLUMN + WIDTH,
        height,
        places: corners.into_iter().take(nodes).collect(),
    }
}

impl Columns {
    fn new(column: Vec<usize>) -> Self {
        let count = column.iter().max().map_or(0, |last| last + 1);
        let mut rows = vec![Vec::new(); count];
        for (node, place) in column.iter().enumerate() {
            if let Some(row) = rows.get_mut(*place) {
                row.push(node);
            }
        }
        let empty = vec![Vec::new(); column.len()];
        Self {
            column,
            rows,
            before: empty.clone(),
            after: empty,
        }
    }

    /// Connects two nodes; the answer is where the edge passes the columns between them, from left to right.
    fn connect(&mut self, (a, b): (usize, usize)) -> Vec<usize> {
        let at = |node: usize| self.column.get(node).copied().unwrap_or_default();
        let (left, right) = if at(a) <= at(b) { (a, b) } else { (b, a) };
        let (first, last) = (at(left), at(right));
        if first == last {
            return Vec::new();
        }
        let mut places = Vec::new();
        let mut previous = left;
        for column in first + 1..last {
            let place = self.column.len();
            self.column.push(column);
            self.before.push(Vec::new());
            self.after.push(Vec::new());
            if let Some(row) = self.rows.get_mut(column) {
                row.push(place);
            }
            self.link(previous, place);
            previous = place;
            places.push(place);
        }
        self.link(previous, right);
        places
    }

    fn link(&mut self, left: usize, right: usize) {
        if let Some(after) = self.after.get_mut(left) {
            after.push(right);
        }
        if let Some(before) = self.before.get_mut(right) {
            before.push(left);
        }
    }

    /// Sorts each column by the middle of its neighbours in the one before, or after.
    fn order(&mut self, forward: bool) {
        let mut heights = vec![0.0; self.column.len()];
        let count = self.rows.len();
        let order: Vec<usize> = match forward {
            true => (0..count).collect(),
            false => (0..count).rev().collect(),
        };
        for row in &self.rows {
            remember(&mut heights, row);
        }
        for at in order {
            let neighbours = if forward { &self.before } else { &self.after };
            let wish = |node: usize| match neighbours.get(node).map(Vec::as_slice) {
                None | Some([]) => heights.get(node).copied().unwrap_or_default(),
                Some(others) => {
                    let sum: f64 = others.iter().filter_map(|other| heights.get(*other)).sum();
                    sum / others.len() as f64
                }
            };
            if let Some(row) = self.rows.get_mut(at) {
                row.sort_by(|a, b| wish(*a).total_cmp(&wish(*b)));
                remember(&mut heights, row);
            }
        }
    }

    /// The upper left corners, and the height of the whole.
    fn place(&self, nodes: usize) -> (Vec<Point>, f64) {
        let tall = |place: &usize| if *place < nodes { ROW } else { PASSING };
        let sizes: Vec<f64> = self
            .rows
            .iter()
            .map(|row| row.iter().map(tall).sum())
            .collect();
        let tallest = sizes.iter().copied().fold(0.0, f64::max);
        let mut corners = vec![(0.0, 0.0); self.column.len()];
        for (column, (row, size)) in self.rows.iter().zip(&sizes).enumerate() {
            let mut y = MARGIN + (tallest - size) / 2.0;
            for place in row {
                let inset = (tall(place) - HEIGHT) / 2.0;
                set(
                    &mut corners,
                    *place,
                    (MARGIN + column as f64 * COLUMN, y + inset),
                );
                y += tall(place);
            }
        }
        (corners, MARGIN * 2.0 + tallest)
    }
}

/// An edge at one side of a node: the height that it comes from, its number, and whether the node calls.
type Touch = (f64, usize, bool);

/// Where each edge touches its two nodes: apart from the others there, sorted by where they come from.
struct Sides {
    /// By edge: heights at its caller and at its callee.
    touches: Vec<(f64, f64)>,
}

impl Sides {
    fn new(
        graph: &Graph,
        columns: &Columns,
        passing: &HashMap<(usize, usize), Vec<usize>>,
        corners: &[Point],
    ) -> Self {
        let column = |node: usize| columns.column.get(node).copied().unwrap_or_default();
        let height = |place: usize| corners.get(place).map_or(0.0, |corner| corner.1);
        // By node and side: the edges there, with the height that each comes from.
        let mut at: HashMap<(usize, bool), Vec<Touch>> = HashMap::new();
        for (number, edge) in graph.edges.iter().enumerate() {
            let ends = (edge.from.min(edge.to), edge.from.max(edge.to));
            let way = passing.get(&ends).map(Vec::as_slice).unwrap_or_default();
            for (node, other, calls) in [(edge.from, edge.to, true), (edge.to, edge.from, false)] {
                let next = match column(node) < column(other) {
                    true => way.first(),
                    false => way.last(),
                };
                let rightward = column(other) >= column(node);
                let from = height(next.copied().unwrap_or(other));
                at.entry((node, rightward))
                    .or_default()
                    .push((from, number, calls));
            }
        }
        let mut touches = vec![(0.0, 0.0); graph.edges.len()];
        for ((node, _), mut edges) in at {
            edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let step = HEIGHT / (edges.len() + 1) as f64;
            for (place, (_, number, calls)) in edges.into_iter().enumerate() {
                let y = height(node) + step * (place + 1) as f64;
                if let Some(touch) = touches.get_mut(number) {
                    match calls {
                        true => touch.0 = y,
                        false => touch.1 = y,
                    }
                }
            }
        }
        Self { touches }
    }
}

fn route(
    edge: &crate::tools::graph::Edge,
    number: usize,
    passing: &[usize],
    columns: &Columns,
    sides: &Sides,
    corners: &[Point],
) -> Vec<(Point, Point)> {
    let corner = |place: usize| corners.get(place).copied().unwrap_or_default();
    let column = |node: usize| columns.column.get(node).copied().unwrap_or_default();
    let (start, end) = sides.touches.get(number).copied().unwrap_or_default();
    let (x1, x2) = (corner(edge.from).0, corner(edge.to).0);
    let rightward = column(edge.to) > column(edge.from);
    let same = column(edge.to) == column(edge.from);
    let out = if rightward || same { x1 + WIDTH } else { x1 };
    let into = if rightward { x2 } else { x2 + WIDTH };
    let mut points = vec![((out, start), (out, start))];
    for place in passing {
        let (x, y) = corner(*place);
        let y = y + HEIGHT / 2.0 + (number % 3) as f64 * 3.0 - 3.0;
        points.push(match rightward {
            true => ((x, y), (x + WIDTH, y)),
            false => ((x + WIDTH, y), (x, y)),
        });
    }
    points.push(((into, end), (into, end)));
    points
}

/// The column of each node: one more than that of its callers, edges that close a circle left aside.
fn columns_of(graph: &Graph) -> Vec<usize> {
    let count = graph.nodes.len();
    let mut callees = vec![Vec::new(); count];
    for edge in &graph.edges {
        if let (Some(list), true) = (callees.get_mut(edge.from), edge.from != edge.to)
            && !list.contains(&edge.to)
        {
            list.push(edge.to);
        }
    }
    let left = leaving(&callees);
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
                *column = (*column).max(own + 1).min(MAX_COLUMNS - 1);
            }
        }
    }
    columns
}

/// Nodes in the order in which a search in depth leaves them: turned round, few edges go back in it.
fn leaving(callees: &[Vec<usize>]) -> Vec<usize> {
    // What nobody calls comes first: callers stand on the left.
    let called: std::collections::HashSet<_> = callees.iter().flatten().copied().collect();
    let all = 0..callees.len();
    let roots = all.clone().filter(|node| called.contains(node));
    let roots = roots.chain(all.filter(|node| !called.contains(node)));
    let mut entered = vec![false; callees.len()];
    let mut left = Vec::with_capacity(callees.len());
    // Last first, so that the order turned round begins with the callers.
    let roots: Vec<_> = roots.collect();
    for root in roots.into_iter().rev() {
        let mut stack = vec![(root, 0)];
        while let Some((node, at)) = stack.pop() {
            if at == 0 {
                if entered.get(node).copied().unwrap_or(true) {
                    continue;
                }
                set(&mut entered, node, true);
            }
            match callees.get(node).and_then(|list| list.get(at)) {
                // A node that was entered before is left at once.
                Some(next) => stack.extend([(node, at + 1), (*next, 0)]),
                None => left.push(node),
            }
        }
    }
    left
}

fn remember(heights: &mut [f64], row: &[usize]) {
    for (place, node) in row.iter().enumerate() {
        set(heights, *node, place as f64 - row.len() as f64 / 2.0);
    }
}

fn set<T>(list: &mut [T], at: usize, value: T) {
    if let Some(place) = list.get_mut(at) {
        *place = value;
    }
}
