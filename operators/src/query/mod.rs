//! Checks SQL against schemas, with no I/O: what may be written, whether it can be planned, which columns it gives.

mod origin;

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    common::{
        DFSchema, SchemaError, TableReference,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    datasource::empty::EmptyTable,
    error::DataFusionError,
    execution::SessionState,
    logical_expr::{
        Distinct, Expr, LogicalPlan, Volatility,
        expr::{AggregateFunction, WindowFunction},
    },
    prelude::{SessionConfig, SessionContext},
    sql::{
        parser::{DFParser, Statement},
        sqlparser::ast::{self, LimitClause, ObjectName, Query, Select, SetExpr, TableFactor, Visit, Visitor},
    },
};
use futures::FutureExt;
use ingrain_engine::failure::Failure;

/// Aggregates and window functions whose value depends on the order in which rows arrive.
const ORDERED: [&str; 15] = [
    "any_value",
    "array_agg",
    "cume_dist",
    "dense_rank",
    "first_value",
    "lag",
    "last_value",
    "lead",
    "nth_value",
    "ntile",
    "percent_rank",
    "rank",
    "row_number",
    "string_agg",
    "listagg",
];

/// Sketches whose value depends on the order in which they are merged, even under an `order by`.
const SKETCHES: [&str; 3] = ["approx_median", "approx_percentile_cont", "approx_percentile_cont_with_weight"];

/// What is wrong with an SQL text, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Mistake {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A query that passed: its text as the parser understood it, without comments, and the columns that it gives.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) sql: String,
    pub(crate) schema: SchemaRef,
    /// The tables that the values of its `row_id` come from.
    pub(crate) ids_of: BTreeSet<String>,
}

/// An SQL identifier that names `name` exactly.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Checks that `sql` is one `select` over nothing but `tables`, whose result depends on nothing but their rows.
///
/// # Errors
/// All that is wrong with the text; when that is in order, the first thing that the planner says.
pub(crate) fn select(sql: &str, tables: &[(&str, SchemaRef)]) -> Result<Checked, Vec<Mistake>> {
    let query = parse(sql).map_err(|mistake| vec![mistake])?;
    let mut limits = Limits { tables: tables.iter().map(|(name, _)| (*name).to_owned()).collect(), ..Limits::default() };
    let _: ControlFlow<()> = query.visit(&mut CommonTables(&mut limits.named));
    let _: ControlFlow<()> = query.visit(&mut limits);
    if !limits.mistakes.is_empty() {
        return Err(limits.mistakes);
    }
    let sql = query.to_string();
    let plan = plan(&sql, tables).map_err(|mistake| vec![mistake])?;
    let schema = Arc::new(plan.schema().as_arrow().clone());
    let ids_of = schema.index_of("row_id").map(|column| origin::tables(&plan, column)).unwrap_or_default();
    Ok(Checked { sql, schema, ids_of })
}

/// Checks that `sql` is one boolean expression over the columns of `schema`, whose value depends on nothing but the row,
/// and gives it back as the parser understood it.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn predicate(sql: &str, table: &str, schema: &SchemaRef) -> Result<String, Mistake> {
    let state = session().state();
    let dialect = state.config_options().sql_parser.dialect;
    let parsed = state.sql_to_expr_with_alias(sql, &dialect).map_err(|error| explained(&error))?;
    if let Some(alias) = parsed.alias {
        return Err(Mistake::new(format!("a condition has no name: `as {alias}`")));
    }
    if parsed.expr.visit(&mut Subqueries).is_break() {
        return Err(other_rows("a subquery looks at other rows"));
    }
    let text = parsed.expr.to_string();
    let columns = DFSchema::try_from_qualified_schema(TableReference::bare(table), schema).map_err(|error| explained(&error))?;
    let expr = state.create_logical_expr(&text, &columns).map_err(|error| explained(&error))?;
    let mut mistake = expression(&expr);
    let whole = expr.apply(|part| {
        let found = match part {
            Expr::AggregateFunction(call) => Some(format!("`{}` counts over many rows", call.func.name())),
            Expr::WindowFunction(call) => Some(format!("`{}` looks at other rows", call.fun.name())),
            Expr::Unnest(_) => Some("`unnest` makes several rows of one".into()),
            _ => None,
        };
        if mistake.is_none() {
            mistake = found.map(|found| other_rows(&found));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    whole.map_err(|error| explained(&error))?;
    if let Some(mistake) = mistake {
        return Err(mistake);
    }
    let sql = format!("select ({text}) as kept from {}", quoted(table));
    let planned = plan(&sql, &[(table, schema.clone())])?;
    match planned.schema().field(0).data_type() {
        DataType::Boolean => Ok(text),
        other => Err(Mistake::new(format!("a condition must be true or false, this is {other}"))),
    }
}

/// Checks a condition over the columns of a table, for those who only look at it.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn condition(sql: &str, schema: &SchemaRef) -> Result<String, Failure> {
    predicate(sql, "rows", schema)
        .map_err(|mistake| Failure { hint: mistake.hint, ..Failure::data(format!("the condition `{sql}`: {}", mistake.message)) })
}

fn other_rows(found: &str) -> Mistake {
    Mistake::new(format!("{found}; a condition sees one row at a time")).hint("a `sql` stage can do that")
}

/// Stops at the first query within an expression.
struct Subqueries;

impl Visitor for Subqueries {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

/// A session that sees nothing but the tables that are registered with it: no files, no information schema. Types are as
/// the engine's: no views.
fn session() -> SessionContext {
    let mut config = SessionConfig::new().with_information_schema(false).with_target_partitions(1);
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    SessionContext::new_with_config(config)
}

fn parse(sql: &str) -> Result<Query, Mistake> {
    let mut statements = DFParser::parse_sql(sql).map_err(|error| explained(&error))?;
    let only = || Mistake::new("only one `select` is allowed").hint("write one query; `with` may stand in front of it");
    match (statements.pop_front(), statements.is_empty()) {
        (Some(Statement::Statement(statement)), true) => match *statement {
            ast::Statement::Query(query) => Ok(*query),
            _ => Err(only()),
        },
        _ => Err(only()),
    }
}

fn plan(sql: &str, tables: &[(&str, SchemaRef)]) -> Result<LogicalPlan, Mistake> {
    let context = session();
    for (name, schema) in tables {
        let table = Arc::new(EmptyTable::new(schema.clone()));
        context.register_table(TableReference::bare(*name), table).map_err(|error| explained(&error))?;
    }
    let state = context.state();
    let plan = analyzed(&state, sql).map_err(|error| explained(&error))?;
    let mut found = None;
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Distinct(Distinct::On(on)) = node
            && on.sort_expr.as_ref().is_none_or(Vec::is_empty)
        {
            found = Some(
                Mistake::new("`distinct on` without `order by` keeps whichever row comes first")
                    .hint("order by something that is different in every row, such as `row_id`"),
            );
        }
        node.apply_expressions(|expr| {
            found = found.take().or_else(|| expression(expr));
            Ok(TreeNodeRecursion::Continue)
        })
    });
    walked.map_err(|error| explained(&error))?;
    match found {
        Some(mistake) => Err(mistake),
        None => Ok(plan),
    }
}

/// The plan with its types settled. Tables are in memory, so the planner's future never waits.
fn analyzed(state: &SessionState, sql: &str) -> Result<LogicalPlan, DataFusionError> {
    let plan = state
        .create_logical_plan(sql)
        .now_or_never()
        .unwrap_or_else(|| Err(DataFusionError::Internal("planning over tables in memory had to wait".into())))?;
    state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})
}

/// The first thing in `expr` whose value depends on more than the rows.
fn expression(expr: &Expr) -> Option<Mistake> {
    let mut found = None;
    let walked = expr.apply(|part| {
        found = match part {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => Some(
                Mistake::new(format!("`{}()` gives something else each time", call.func.name()))
                    .hint("results are kept and reused, so they may depend on the rows only"),
            ),
            Expr::ScalarVariable(_, names) => Some(Mistake::new(format!("`{}` is not a column", names.join(".")))),
            Expr::Placeholder(placeholder) => Some(Mistake::new(format!("`{}` has no value here", placeholder.id))),
            Expr::AggregateFunction(AggregateFunction { func, params }) => unordered(func.name(), params.order_by.is_empty()),
            Expr::WindowFunction(call) => {
                let WindowFunction { fun, params } = call.as_ref();
                unordered(fun.name(), params.order_by.is_empty())
            }
            _ => None,
        };
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match walked {
        Ok(_) => found,
        Err(error) => Some(explained(&error)),
    }
}

fn unordered(function: &str, without_order: bool) -> Option<Mistake> {
    if SKETCHES.contains(&function) {
        return Some(
            Mistake::new(format!("`{function}` depends on the order of the rows")).hint("`median` and `percentile_cont` don't"),
        );
    }
    (without_order && ORDERED.contains(&function)).then(|| {
        Mistake::new(format!("`{function}` depends on the order of the rows, and tables have none"))
            .hint(format!("give it an `order by` that is different in every row, such as `{function}(… order by row_id)`"))
    })
}

/// Collects the names that `with` defines, wherever it stands; the planner knows where each one holds.
struct CommonTables<'a>(&'a mut BTreeSet<String>);

impl Visitor for CommonTables<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.0.extend(with.cte_tables.iter().map(|table| identifier(&table.alias.name)));
        }
        ControlFlow::Continue(())
    }
}

/// Collects what a query may not contain.
#[derive(Default)]
struct Limits {
    tables: Vec<String>,
    named: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

impl Limits {
    fn add(&mut self, mistake: Mistake) {
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    fn body(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => {}
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left);
                self.body(right);
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) | SetExpr::Table(_) => {
                self.add(Mistake::new("only `select` is allowed"));
            }
        }
    }

    fn relation(&mut self, name: &ObjectName) {
        let parts: Vec<_> = name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), identifier)).collect();
        let known = match parts.as_slice() {
            [only] => self.named.contains(only) || self.tables.contains(only),
            _ => false,
        };
        if !known {
            let there: Vec<_> = self.tables.iter().map(|name| format!("`{}`", written(name))).collect();
            let hint = match there.as_slice() {
                [] => "nothing arrives here; name the stages to read in `from`".to_owned(),
                _ => format!("there are {}, as named in `from`", there.join(", ")),
            };
            self.add(Mistake::new(format!("no table `{name}`")).hint(hint));
        }
    }
}

impl Visitor for Limits {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.body(&query.body);
        let limited = match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => limit.is_some() || offset.is_some(),
            Some(LimitClause::OffsetCommaLimit { .. }) => true,
            None => query.fetch.is_some(),
        };
        if limited && query.order_by.is_none() {
            self.add(
                Mistake::new("`limit` without `order by` keeps whichever rows come first")
                    .hint("order by something that is different in every row, such as `row_id`"),
            );
        }
        if !query.locks.is_empty() {
            self.add(Mistake::new("tables can't be locked"));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.into.is_some() {
            self.add(Mistake::new("`select into` writes; only reading is allowed"));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args, sample, .. } => {
                if args.is_some() {
                    self.add(Mistake::new(format!("table function `{name}` is not allowed; a query reads its ports only")));
                } else {
                    self.relation(name);
                }
                if sample.is_some() {
                    self.add(Mistake::new("`tablesample` gives something else each time"));
                }
            }
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } | TableFactor::UNNEST { .. } => {}
            other => self.add(Mistake::new(format!("`{other}` is not allowed; a query reads its ports only"))),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, _: &ast::Statement) -> ControlFlow<()> {
        self.add(Mistake::new("only `select` is allowed"));
        ControlFlow::Continue(())
    }
}

/// The name that an identifier stands for: as written between quotes, else in lower case.
fn identifier(ident: &ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// How `name` must be written in a query.
fn written(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if plain { name.to_owned() } else { quoted(name) }
}

/// What the planner says, in our words where it is about columns.
fn explained(error: &DataFusionError) -> Mistake {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => explained(inner),
        DataFusionError::Shared(inner) => explained(inner),
        DataFusionError::Collection(errors) => {
            errors.first().map_or_else(|| Mistake::new("the query can't be planned"), explained)
        }
        DataFusionError::SchemaError(inner, _) => match inner.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut there: Vec<_> = valid_fields.iter().map(|field| format!("`{}`", written(&field.name))).collect();
                there.dedup();
                let mistake = Mistake::new(format!("no column `{}`", field.flat_name()));
                if there.is_empty() { mistake } else { mistake.hint(format!("there are {}", there.join(", "))) }
            }
            SchemaError::AmbiguousReference { field } => Mistake::new(format!("`{}` stands in several tables", field.name))
                .hint(format!("write the table in front: `table.{}`", field.name)),
            other => Mistake::new(fragment(&other.to_string())),
        },
        DataFusionError::SQL(error, _) => {
            let text = error.to_string();
            let text = text.strip_prefix("sql parser error: ").unwrap_or(&text);
            Mistake::new(format!("not SQL: {}", fragment(text)))
        }
        other => {
            let text = other.strip_backtrace();
            let text = ["Error during planning: ", "This feature is not implemented: ", "Execution error: "]
                .into_iter()
                .fold(text.as_str(), |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
            Mistake::new(fragment(text))
        }
    }
}

/// The first line of a foreign message as a lower-case fragment.
fn fragment(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim().trim_end_matches('.');
    let mut chars = line.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => line.to_owned(),
    }
}

/// Inputs with one table at each port, named after it.
#[cfg(test)]
pub(crate) fn inputs(ports: &[(&str, SchemaRef)]) -> ingrain_engine::operator::Inputs {
    use ingrain_engine::operator::{Input, Inputs};
    let input = |(name, schema): &(&str, SchemaRef)| {
        ((*name).to_owned(), vec![Input { name: (*name).to_owned(), cell: Default::default(), schema: schema.clone() }])
    };
    Inputs { ports: ports.iter().map(input).collect(), ..Inputs::default() }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn table() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("row_id", DataType::Utf8, false),
            Field::new("question", DataType::Utf8, true),
            Field::new("draw", DataType::Int32, false),
        ]))
    }

    fn refused(sql: &str) -> String {
        let tables = [("qa", table()), ("Other", table())];
        let mistakes = select(sql, &tables).expect_err(sql);
        mistakes.iter().map(|m| m.message.clone()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn queries_give_their_columns() {
        let sql =
            "with q as (select * from qa) -- a comment\nselect row_id, draw + 1 as next from q where question like 'a%'; -- end";
        let checked = select(sql, &[("qa", table())]).unwrap();
        assert_eq!(checked.schema.field(0).name(), "row_id");
        assert_eq!(checked.schema.field(1).data_type(), &DataType::Int64);
        assert!(!checked.sql.contains("comment"), "{}", checked.sql);
        for sql in [
            "select row_id from qa union all select row_id from qa",
            "select first_value(row_id order by row_id) as row_id, question from qa group by question",
            "select row_id, row_number() over (partition by question order by row_id) as n from qa",
            "select row_id from qa order by row_id limit 3",
            "select a.row_id from qa as a join \"Other\" as b on a.row_id = b.row_id",
            "select row_id from qa where draw in (select max(draw) from qa)",
        ] {
            assert!(select(sql, &[("qa", table()), ("Other", table())]).is_ok(), "{sql}");
        }
    }

    #[test]
    fn nothing_but_a_select_over_the_ports_is_allowed() {
        for (sql, said) in [
            ("drop table qa", "only one `select`"),
            ("select 1; select 2", "only one `select`"),
            ("", "only one `select`"),
            ("insert into qa select * from qa", "only one `select`"),
            ("copy qa to 'out.parquet'", "only one `select`"),
            ("create external table t stored as csv location '/etc/passwd'", "only one `select`"),
            ("set datafusion.execution.batch_size = 1", "only one `select`"),
            ("explain select * from qa", "only one `select`"),
            ("show tables", "only one `select`"),
            ("select * into t from qa", "select into"),
            ("select * from 'file.parquet'", "no table `'file.parquet'`"),
            ("select * from information_schema.tables", "no table `information_schema.tables`"),
            ("select * from datafusion.public.qa", "no table `datafusion.public.qa`"),
            ("select * from generate_series(1, 3)", "table function `generate_series`"),
            ("select * from other", "no table `other`"),
            ("select row_id from qa limit 3", "`limit` without `order by`"),
            ("select row_id, random() as r from qa", "`random()`"),
            ("select row_id from qa where now() > '2020-01-01'", "`now()`"),
            ("select row_id from qa where draw > (select avg(random()) from qa)", "`random()`"),
            ("select uuid() as row_id from qa", "`uuid()`"),
            ("select first_value(row_id) as row_id from qa group by question", "`first_value`"),
            ("select array_agg(row_id) as ids from qa", "`array_agg`"),
            ("select row_number() over () as n from qa", "`row_number`"),
            ("select approx_median(draw) from qa", "`approx_median`"),
            ("select distinct on (question) row_id from qa", "`distinct on`"),
            ("select answer from qa", "no column `answer`"),
            ("select $1 from qa", "`$1`"),
            ("select row_id from", "not SQL"),
            ("select row_id from qa where draw like 3 +", "not SQL"),
        ] {
            let message = refused(sql);
            assert!(message.contains(said), "{sql}: {message}");
        }
    }

    #[test]
    fn what_there_is_stands_in_the_hint() {
        let mistakes = select("select a from qa, t", &[("qa", table())]).unwrap_err();
        assert_eq!(mistakes[0].hint.as_deref(), Some("there are `qa`, as named in `from`"));
        let mistakes = select("select a from qa", &[("qa", table())]).unwrap_err();
        assert_eq!(mistakes[0].hint.as_deref(), Some("there are `row_id`, `question`, `draw`"));
    }

    #[test]
    fn predicates_are_one_boolean_expression_of_the_row() {
        let ok = |sql: &str| predicate(sql, "default", &table()).map_err(|mistake| mistake.message);
        assert_eq!(ok("draw > 1 and question is not null -- why"), Ok("draw > 1 AND question IS NOT NULL".into()));
        assert!(ok("length(question) between 3 and 10 or question ilike '%x%'").is_ok());
        for (sql, said) in [
            ("draw >", "not SQL"),
            ("draw > 1; drop table x", "not SQL"),
            ("draw > 1) or (true", "not SQL"),
            ("draw > 1 as keep", "has no name"),
            ("score > 1", "no column `score`"),
            ("draw + 1", "true or false"),
            ("random() < 0.5", "`random()`"),
            ("now() is not null", "`now()`"),
            ("count(*) > 1", "`count`"),
            ("row_number() over (order by row_id) > 3", "`row_number`"),
            ("draw = (select max(draw) from \"default\")", "a subquery"),
            ("row_id in (select row_id from \"default\")", "a subquery"),
            ("exists (select 1)", "a subquery"),
        ] {
            let message = ok(sql).unwrap_err();
            assert!(message.contains(said), "{sql}: {message}");
        }
        assert!(ok("").is_err());
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(written("doc_id"), "doc_id");
        assert_eq!(written("Doc"), "\"Doc\"");
    }
}
