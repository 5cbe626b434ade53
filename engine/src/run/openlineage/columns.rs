//! Where the columns of a query's result come from: column by column, through its logical plan.

use std::{collections::BTreeSet, sync::Arc};

use arrow::datatypes::SchemaRef;
use datafusion::{
    common::{
        Column, TableReference,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    datasource::empty::EmptyTable,
    logical_expr::{Distinct, Expr, JoinType, LogicalPlan},
    prelude::{SessionConfig, SessionContext},
};

use super::event::Transformation;

/// A column of a table, and how it acts.
pub(super) type Origin = (String, String, Transformation);

/// What a query reads for its result.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Origins {
    /// By column of the result, in their order: its name, and the columns that its values come from.
    pub(super) columns: Vec<(String, BTreeSet<Origin>)>,
    /// Columns that decide which rows there are.
    pub(super) rows: BTreeSet<Origin>,
}

/// The origins of a query's columns; `None` where they can't be told for sure, as with a subquery in an expression.
pub(super) async fn origins(sql: &str, tables: &[(&str, SchemaRef)]) -> Option<Origins> {
    let mut config = SessionConfig::new().with_information_schema(false).with_target_partitions(1);
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    let context = SessionContext::new_with_config(config);
    for (name, schema) in tables {
        context.register_table(TableReference::bare(*name), Arc::new(EmptyTable::new(schema.clone()))).ok()?;
    }
    let plan = context.state().create_logical_plan(sql).await.ok()?;
    let mut found = Origins::default();
    for (column, field) in plan.schema().fields().iter().enumerate() {
        found.columns.push((field.name().clone(), of_column(&plan, column)?));
    }
    let mut is_told = true;
    let walked = plan.apply_with_subqueries(|node| {
        match deciding(node) {
            Some(rows) => found.rows.extend(rows),
            None => is_told = false,
        }
        Ok(TreeNodeRecursion::Continue)
    });
    (walked.is_ok() && is_told).then_some(found)
}

/// The origins of column number `column` of a plan's result.
fn of_column(plan: &LogicalPlan, column: usize) -> Option<BTreeSet<Origin>> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let field = scan.projected_schema.fields().get(column)?;
            Some([(scan.table_name.table().to_owned(), field.name().clone(), Transformation::IDENTITY)].into())
        }
        LogicalPlan::Projection(projection) => of_expression(projection.expr.get(column)?, plan),
        LogicalPlan::Distinct(Distinct::On(on)) => of_expression(on.select_expr.get(column)?, plan),
        LogicalPlan::Aggregate(aggregate) => {
            let expr = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).nth(column)?;
            let is_set = aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)));
            if is_set { None } else { of_expression(expr, plan) }
        }
        LogicalPlan::Window(window) => match column.checked_sub(window.input.schema().fields().len()) {
            Some(place) => of_expression(window.window_expr.get(place)?, plan),
            None => of_column(&window.input, column),
        },
        LogicalPlan::Union(union) => {
            let inputs: Option<Vec<_>> = union.inputs.iter().map(|input| of_column(input, column)).collect();
            Some(inputs?.into_iter().flatten().collect())
        }
        LogicalPlan::Join(join) => {
            let left = join.left.schema().fields().len();
            match join.join_type {
                JoinType::RightSemi | JoinType::RightAnti => of_column(&join.right, column),
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full if column >= left => {
                    of_column(&join.right, column - left)
                }
                JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti => {
                    of_column(&join.left, column)
                }
                JoinType::LeftMark | JoinType::RightMark => None,
            }
        }
        LogicalPlan::SubqueryAlias(alias) => of_column(&alias.input, column),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => of_column(plan.inputs().first()?, column),
        LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => Some(BTreeSet::new()),
        _ => None,
    }
}

/// The origins of an expression over the inputs of `plan`.
fn of_expression(expr: &Expr, plan: &LogicalPlan) -> Option<BTreeSet<Origin>> {
    match expr {
        Expr::Alias(alias) => return of_expression(&alias.expr, plan),
        Expr::Column(column) => return of_input(column, plan),
        _ => {}
    }
    let how = if expr.exists(|part| Ok(matches!(part, Expr::AggregateFunction(_)))).ok()? {
        Transformation::AGGREGATION
    } else {
        Transformation::COMPUTED
    };
    computed([expr], plan, how)
}

/// The origins of all columns in expressions over the inputs of `plan`, each of which acts in the way given.
fn computed<'a>(exprs: impl IntoIterator<Item = &'a Expr>, plan: &LogicalPlan, how: Transformation) -> Option<BTreeSet<Origin>> {
    let mut found = BTreeSet::new();
    for expr in exprs {
        // A value of another query stands for any of its rows.
        let inner = |part: &Expr| {
            matches!(part, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::OuterReferenceColumn(..))
        };
        if expr.exists(|part| Ok(inner(part))).ok()? {
            return None;
        }
        for column in expr.column_refs() {
            found.extend(of_input(column, plan)?.into_iter().map(|(table, field, _)| (table, field, how)));
        }
    }
    Some(found)
}

/// The origins of a column of one of the inputs of `plan`.
fn of_input(column: &Column, plan: &LogicalPlan) -> Option<BTreeSet<Origin>> {
    let (input, place) =
        plan.inputs().into_iter().find_map(|input| Some((input, input.schema().maybe_index_of_column(column)?)))?;
    of_column(input, place)
}

/// The columns by which a node of a plan decides which rows there are.
fn deciding(plan: &LogicalPlan) -> Option<BTreeSet<Origin>> {
    match plan {
        LogicalPlan::Filter(filter) => computed([&filter.predicate], plan, Transformation::FILTER),
        LogicalPlan::Join(join) => {
            let on = join.on.iter().flat_map(|(left, right)| [left, right]);
            computed(on.chain(&join.filter), plan, Transformation::JOIN)
        }
        LogicalPlan::Aggregate(aggregate) => computed(&aggregate.group_expr, plan, Transformation::GROUP_BY),
        LogicalPlan::Distinct(Distinct::On(on)) => computed(&on.on_expr, plan, Transformation::GROUP_BY),
        LogicalPlan::Sort(sort) => computed(sort.expr.iter().map(|sort| &sort.expr), plan, Transformation::SORT),
        LogicalPlan::Window(window) => {
            let mut found = BTreeSet::new();
            for expr in &window.window_expr {
                if let Expr::WindowFunction(call) = expr {
                    let order = call.params.order_by.iter().map(|sort| &sort.expr);
                    found.extend(computed(call.params.partition_by.iter().chain(order), plan, Transformation::WINDOW)?);
                }
            }
            Some(found)
        }
        _ => Some(BTreeSet::new()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    async fn told(sql: &str) -> Option<(String, String)> {
        let schema = |names: &[&str]| -> SchemaRef {
            Arc::new(Schema::new(names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect::<Vec<_>>()))
        };
        let tables = [("qa", schema(&["row_id", "doc_id", "question"])), ("docs", schema(&["row_id", "doc_id", "text"]))];
        let found = origins(sql, &tables).await?;
        let word = |how: &Transformation| {
            let how = serde_json::json!(how);
            how["subtype"].as_str().unwrap_or("?").to_lowercase()
        };
        let list = |origins: &BTreeSet<Origin>| {
            let said = origins.iter().map(|(table, column, how)| format!("{table}.{column} {}", word(how)));
            said.collect::<Vec<_>>().join(", ")
        };
        let columns: Vec<String> = found.columns.iter().map(|(name, from)| format!("{name}: {}", list(from))).collect();
        Some((columns.join("; "), list(&found.rows)))
    }

    #[tokio::test]
    async fn columns_are_followed_to_the_tables() {
        for (sql, columns, rows) in [
            (
                "select row_id, upper(question) as q from qa where doc_id = 'a'",
                "row_id: qa.row_id identity; q: qa.question transformation",
                "qa.doc_id filter",
            ),
            (
                "select q.row_id as row_id, d.text from qa as q join docs as d on q.doc_id = d.doc_id order by q.row_id limit 3",
                "row_id: qa.row_id identity; text: docs.text identity",
                "docs.doc_id join, qa.doc_id join, qa.row_id sort",
            ),
            (
                "with n as (select doc_id, count(question) as n from qa group by doc_id) select doc_id as row_id, n from n",
                "row_id: qa.doc_id identity; n: qa.question aggregation",
                "qa.doc_id group_by",
            ),
            (
                "select row_id, question || '?' as text from qa union all select row_id, text from docs",
                "row_id: docs.row_id identity, qa.row_id identity; text: docs.text identity, qa.question transformation",
                "",
            ),
        ] {
            assert_eq!(told(sql).await, Some((columns.into(), rows.into())), "{sql}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_told_is_not_guessed() {
        for sql in [
            "select row_id from qa where doc_id in (select doc_id from docs)",
            "select row_id, (select max(text) from docs) as t from qa",
            "select nothing from qa",
        ] {
            assert_eq!(told(sql).await, None, "{sql}");
        }
    }
}
