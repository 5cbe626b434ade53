//! From which tables a column of a query's result comes.

use std::collections::BTreeSet;

use datafusion::{
    common::{
        Column,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Distinct, Expr, LogicalPlan},
};

/// The tables that the values of column number `column` come from, by name. Where that can't be told, all tables below.
pub(super) fn tables(plan: &LogicalPlan, column: usize) -> BTreeSet<String> {
    match plan {
        LogicalPlan::TableScan(scan) => BTreeSet::from([scan.table_name.table().to_owned()]),
        LogicalPlan::Projection(projection) => of_expression(&projection.expr[column], plan),
        LogicalPlan::Distinct(Distinct::On(on)) => of_expression(&on.select_expr[column], plan),
        LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.iter().chain(&aggregate.aggr_expr).nth(column) {
            Some(expr) if !aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) => {
                of_expression(expr, plan)
            }
            _ => all(plan),
        },
        LogicalPlan::Window(window) => match column.checked_sub(window.input.schema().fields().len()) {
            Some(place) => of_expression(&window.window_expr[place], plan),
            None => tables(&window.input, column),
        },
        LogicalPlan::Union(union) => union.inputs.iter().flat_map(|input| tables(input, column)).collect(),
        LogicalPlan::SubqueryAlias(alias) => tables(&alias.input, column),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Distinct(Distinct::All(_))
        | LogicalPlan::Join(_) => match plan.schema().columns().get(column) {
            Some(column) => of_column(column, plan),
            None => all(plan),
        },
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => BTreeSet::new(),
        _ => all(plan),
    }
}

/// Where a column of one of the inputs of `plan` comes from.
fn of_column(column: &Column, plan: &LogicalPlan) -> BTreeSet<String> {
    let places = plan.inputs().into_iter().filter_map(|input| Some((input, input.schema().maybe_index_of_column(column)?)));
    let mut places = places.peekable();
    if places.peek().is_none() {
        return all(plan);
    }
    places.flat_map(|(input, place)| tables(input, place)).collect()
}

fn of_expression(expr: &Expr, plan: &LogicalPlan) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = expr.column_refs().into_iter().flat_map(|column| of_column(column, plan)).collect();
    // A value of another query stands for any of its rows.
    let inner = expr.exists(|part| Ok(matches!(part, Expr::ScalarSubquery(_) | Expr::OuterReferenceColumn(..))));
    if inner.unwrap_or(true) {
        found.extend(all(plan));
    }
    found
}

/// All tables below.
fn all(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found.insert(scan.table_name.table().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "the closure never fails");
    found
}
