//! Static check of a template against what it will be given: unknown variables, fields, filters, tests and functions are
//! found when the flow is applied, not by the first user.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::Value;
use minijinja::machinery::{ast, parse};

use super::shape::{Field, Shape};
use super::suggest::{nearest, suggestion, suggestion_within};
use super::{CompileError, NAME, environment, guard, syntax, syntax_config};

/// What a template reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Everything read from the context, as paths such as `nodes.search.chunks`, each with the first line that reads it.
    pub reads: Vec<Read>,
}

/// A variable that a template reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Read {
    /// Path from the root of the context.
    pub path: Vec<String>,
    /// Line, from 1.
    pub line: usize,
}

impl Checked {
    /// Names of the nodes whose output is read.
    pub fn nodes(&self) -> BTreeSet<&str> {
        self.reads
            .iter()
            .filter_map(|read| match read.path.as_slice() {
                [root, node, ..] if root == "nodes" => Some(node.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// A mistake in a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong and what was perhaps meant.
    pub message: String,
}

/// Checks a template against the shape of its context and says what it reads.
///
/// # Errors
/// All problems, in the order of lines; a syntax error alone.
pub fn check(source: &str, context: &BTreeMap<String, Field>) -> Result<Checked, Vec<Problem>> {
    let single = |error: CompileError| {
        vec![match error {
            CompileError::Syntax { line, message } => Problem { line, message },
            other => Problem { line: 1, message: other.to_string() },
        }]
    };
    super::Template::compile(source).map_err(single)?;
    let tree = parse(source, NAME, syntax_config()).map_err(|error| single(syntax(&error)))?;
    let mut walker = Walker::over(context);
    walker.statement(&tree);
    walker.finish()
}

/// Refuses statements that reach for other templates.
pub(super) fn refuse_sandboxed(source: &str) -> Result<(), CompileError> {
    guard(source)?;
    let tree = parse(source, NAME, syntax_config()).map_err(|error| syntax(&error))?;
    match foreign(&tree) {
        Some((statement, line)) => Err(CompileError::Syntax {
            line,
            message: format!(
                "`{statement}` is not available in prompts: a template stands alone; use contentFrom to share text"
            ),
        }),
        None => Ok(()),
    }
}

fn foreign(statement: &ast::Stmt<'_>) -> Option<(&'static str, usize)> {
    let any = |body: &[ast::Stmt<'_>]| body.iter().find_map(foreign);
    match statement {
        ast::Stmt::Include(stmt) => Some(("include", line(stmt.span()))),
        ast::Stmt::Extends(stmt) => Some(("extends", line(stmt.span()))),
        ast::Stmt::Import(stmt) => Some(("import", line(stmt.span()))),
        ast::Stmt::FromImport(stmt) => Some(("from … import", line(stmt.span()))),
        ast::Stmt::Template(stmt) => any(&stmt.children),
        ast::Stmt::ForLoop(stmt) => any(&stmt.body).or_else(|| any(&stmt.else_body)),
        ast::Stmt::IfCond(stmt) => any(&stmt.true_body).or_else(|| any(&stmt.false_body)),
        ast::Stmt::WithBlock(stmt) => any(&stmt.body),
        ast::Stmt::SetBlock(stmt) => any(&stmt.body),
        ast::Stmt::AutoEscape(stmt) => any(&stmt.body),
        ast::Stmt::FilterBlock(stmt) => any(&stmt.body),
        ast::Stmt::Block(stmt) => any(&stmt.body),
        ast::Stmt::Macro(stmt) => any(&stmt.body),
        ast::Stmt::CallBlock(stmt) => any(&stmt.macro_decl.body),
        ast::Stmt::EmitExpr(_) | ast::Stmt::EmitRaw(_) | ast::Stmt::Set(_) | ast::Stmt::Do(_) => None,
    }
}

fn line(span: minijinja::machinery::Span) -> usize {
    usize::from(span.start_line)
}

/// A value met during the walk: its shape, and where in the context it comes from.
struct Met {
    shape: Shape,
    path: Option<Vec<String>>,
}

impl Met {
    fn unknown() -> Self {
        Self { shape: Shape::Any, path: None }
    }
    fn of(shape: Shape) -> Self {
        Self { shape, path: None }
    }
}

struct Walker<'a> {
    context: &'a BTreeMap<String, Field>,
    scopes: Vec<BTreeMap<String, Shape>>,
    reads: BTreeMap<Vec<String>, usize>,
    /// Members that may be absent, with the first line that reads them outside of a test.
    unguarded: BTreeMap<Vec<String>, usize>,
    /// Paths that the template tests with `is defined` or gives a default.
    guarded: BTreeSet<Vec<String>>,
    problems: BTreeSet<Problem>,
    globals: BTreeSet<String>,
    environment: minijinja::Environment<'static>,
}

impl<'a> Walker<'a> {
    fn over(context: &'a BTreeMap<String, Field>) -> Self {
        let environment = environment();
        let globals = environment.globals().map(|(name, _)| name.to_owned()).collect();
        Self {
            context,
            scopes: vec![BTreeMap::new()],
            reads: BTreeMap::new(),
            unguarded: BTreeMap::new(),
            guarded: BTreeSet::new(),
            problems: BTreeSet::new(),
            globals,
            environment,
        }
    }

    fn finish(mut self) -> Result<Checked, Vec<Problem>> {
        for (path, line) in std::mem::take(&mut self.unguarded) {
            if !self.guarded.contains(&path) {
                let name = path.join(".");
                self.problem(
                    line,
                    format!(
                        "`{name}` may be absent: test it with `{{% if {name} is defined %}}`, or give it a default"
                    ),
                );
            }
        }
        for (path, line) in self.reads.clone() {
            if path.len() == 1 && path.first().is_some_and(|root| root == "nodes") {
                self.problem(
                    line,
                    "`nodes` can only be read by node and field, such as `nodes.answer.text`: the order of the nodes follows from it".to_owned(),
                );
            }
        }
        if self.problems.is_empty() {
            let reads = self.reads.into_iter().map(|(path, line)| Read { path, line }).collect();
            Ok(Checked { reads })
        } else {
            Err(self.problems.into_iter().collect())
        }
    }

    fn problem(&mut self, line: usize, message: String) {
        self.problems.insert(Problem { line, message });
    }

    fn assign(&mut self, target: &ast::Expr<'_>, shape: Shape) {
        match target {
            ast::Expr::Var(var) => {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.insert(var.id.to_owned(), shape);
                }
            }
            ast::Expr::List(list) => list.items.iter().for_each(|item| self.assign(item, Shape::Any)),
            ast::Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item, Shape::Any)),
            ast::Expr::GetAttr(attr) => {
                self.expression(&attr.expr);
            }
            _ => {}
        }
    }

    fn scoped(&mut self, names: &[(&str, Shape)], walk: impl FnOnce(&mut Self)) {
        self.scopes.push(names.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect());
        walk(self);
        self.scopes.pop();
    }

    fn body(&mut self, body: &[ast::Stmt<'_>]) {
        body.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &ast::Stmt<'_>) {
        match statement {
            ast::Stmt::Template(stmt) => self.body(&stmt.children),
            ast::Stmt::EmitExpr(stmt) => {
                self.expression(&stmt.expr);
            }
            ast::Stmt::ForLoop(stmt) => {
                let met = self.expression(&stmt.iter);
                let item = match met.shape {
                    Shape::List(item) => *item,
                    Shape::Number | Shape::Boolean => {
                        let noun = met.shape.noun();
                        self.problem(line(stmt.iter.span()), format!("a {noun} cannot be looped over"));
                        Shape::Any
                    }
                    Shape::Text => Shape::Text,
                    Shape::Object(_) | Shape::Any => Shape::Any,
                };
                self.scoped(&[("loop", Shape::Any)], |walker| {
                    walker.assign(&stmt.target, item);
                    if let Some(filter) = &stmt.filter_expr {
                        walker.expression(filter);
                    }
                    walker.body(&stmt.body);
                });
                self.scoped(&[], |walker| walker.body(&stmt.else_body));
            }
            ast::Stmt::IfCond(stmt) => {
                self.expression(&stmt.expr);
                // A variable set in a branch is visible after it, as in Jinja.
                self.body(&stmt.true_body);
                self.body(&stmt.false_body);
            }
            ast::Stmt::WithBlock(stmt) => self.scoped(&[], |walker| {
                for (target, value) in &stmt.assignments {
                    let shape = walker.expression(value).shape;
                    walker.assign(target, shape);
                }
                walker.body(&stmt.body);
            }),
            ast::Stmt::Set(stmt) => {
                let shape = self.expression(&stmt.expr).shape;
                self.assign(&stmt.target, shape);
            }
            ast::Stmt::SetBlock(stmt) => {
                self.scoped(&[], |walker| walker.body(&stmt.body));
                if let Some(filter) = &stmt.filter {
                    self.expression(filter);
                }
                self.assign(&stmt.target, Shape::Text);
            }
            ast::Stmt::AutoEscape(stmt) => {
                self.expression(&stmt.enabled);
                self.body(&stmt.body);
            }
            ast::Stmt::FilterBlock(stmt) => {
                self.expression(&stmt.filter);
                self.scoped(&[], |walker| walker.body(&stmt.body));
            }
            ast::Stmt::Block(stmt) => self.scoped(&[("super", Shape::Any)], |walker| walker.body(&stmt.body)),
            ast::Stmt::Macro(stmt) => self.declare(stmt),
            ast::Stmt::CallBlock(stmt) => {
                self.call(&stmt.call);
                self.macro_body(&stmt.macro_decl);
            }
            ast::Stmt::Do(stmt) => {
                self.call(&stmt.call);
            }
            ast::Stmt::EmitRaw(_)
            | ast::Stmt::Include(_)
            | ast::Stmt::Extends(_)
            | ast::Stmt::Import(_)
            | ast::Stmt::FromImport(_) => {}
        }
    }

    fn declare(&mut self, declaration: &ast::Macro<'_>) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(declaration.name.to_owned(), Shape::Any);
        }
        self.macro_body(declaration);
    }

    fn macro_body(&mut self, declaration: &ast::Macro<'_>) {
        self.scoped(&[("caller", Shape::Any)], |walker| {
            declaration.defaults.iter().for_each(|value| {
                walker.expression(value);
            });
            declaration.args.iter().for_each(|argument| walker.assign(argument, Shape::Any));
            walker.body(&declaration.body);
        });
    }

    fn expression(&mut self, expression: &ast::Expr<'_>) -> Met {
        let met = self.chain(expression);
        if let Some(path) = &met.path {
            self.reads.entry(path.clone()).or_insert_with(|| line(expression.span()));
        }
        met
    }

    /// As [`Self::expression`], for a value of which only a member is taken: the member is what is read.
    fn chain(&mut self, expression: &ast::Expr<'_>) -> Met {
        match expression {
            ast::Expr::Var(var) => self.variable(var.id, line(var.span())),
            ast::Expr::Const(value) => Met::of(constant(&value.value)),
            ast::Expr::UnaryOp(operation) => {
                self.expression(&operation.expr);
                Met::unknown()
            }
            ast::Expr::BinOp(operation) => {
                self.expression(&operation.left);
                self.expression(&operation.right);
                Met::unknown()
            }
            ast::Expr::Compare(comparison) => {
                self.expression(&comparison.expr);
                comparison.ops.iter().for_each(|operand| {
                    self.expression(&operand.expr);
                });
                Met::of(Shape::Boolean)
            }
            ast::Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr);
                self.expression(&choice.true_expr);
                if let Some(otherwise) = &choice.false_expr {
                    self.expression(otherwise);
                }
                Met::unknown()
            }
            ast::Expr::Filter(filter) => self.filter(filter, line(filter.span())),
            ast::Expr::Test(test) => {
                self.known("test", test.name, line(test.span()));
                let met = self.expression(&test.expr);
                if matches!(test.name, "defined" | "undefined") {
                    self.guarded.extend(met.path);
                }
                self.arguments(&test.args);
                Met::of(Shape::Boolean)
            }
            ast::Expr::GetAttr(get) => {
                let met = self.chain(&get.expr);
                self.member(met, get.name, line(get.span()))
            }
            ast::Expr::GetItem(get) => {
                let met = self.chain(&get.expr);
                match &get.subscript_expr {
                    ast::Expr::Const(key) if key.value.as_str().is_some() => {
                        self.member(met, key.value.as_str().unwrap_or_default(), line(get.span()))
                    }
                    other => {
                        if let Some(path) = met.path {
                            self.reads.entry(path).or_insert_with(|| line(get.span()));
                        }
                        self.expression(other);
                        match met.shape {
                            Shape::List(item) => Met::of(*item),
                            _ => Met::unknown(),
                        }
                    }
                }
            }
            ast::Expr::Slice(slice) => {
                let met = self.expression(&slice.expr);
                for bound in [&slice.start, &slice.stop, &slice.step].into_iter().flatten() {
                    self.expression(bound);
                }
                Met::of(met.shape)
            }
            ast::Expr::Call(call) => self.call(call),
            ast::Expr::List(list) => {
                list.items.iter().for_each(|item| {
                    self.expression(item);
                });
                Met::unknown()
            }
            ast::Expr::Tuple(tuple) => {
                tuple.items.iter().for_each(|item| {
                    self.expression(item);
                });
                Met::unknown()
            }
            ast::Expr::Map(map) => {
                map.keys.iter().chain(&map.values).for_each(|item| {
                    self.expression(item);
                });
                Met::unknown()
            }
        }
    }

    fn variable(&mut self, name: &str, line: usize) -> Met {
        if let Some(shape) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Met::of(shape.clone());
        }
        if let Some(field) = self.context.get(name) {
            let path = vec![name.to_owned()];
            let shape = field.shape.clone();
            return Met { shape, path: Some(path) };
        }
        if self.globals.contains(name) || name == "self" {
            return Met::unknown();
        }
        let known: BTreeSet<&str> = self
            .context
            .keys()
            .map(String::as_str)
            .chain(self.scopes.iter().flat_map(|s| s.keys().map(String::as_str)))
            .collect();
        // The commonest slip: an input without `inputs.`.
        let qualified = self.context.iter().find_map(|(root, field)| match &field.shape {
            Shape::Object(members) if members.contains_key(name) => Some(format!("; did you mean `{root}.{name}`?")),
            _ => None,
        });
        let hint = qualified.unwrap_or_else(|| suggestion(name, known.iter().copied()));
        self.problem(line, format!("`{name}` is not defined{hint}"));
        Met::unknown()
    }

    fn member(&mut self, met: Met, name: &str, line: usize) -> Met {
        let of = met
            .path
            .as_ref()
            .map(|path| format!("`{}`", path.join(".")))
            .unwrap_or_else(|| format!("the {}", met.shape.noun()));
        match &met.shape {
            Shape::Any => {
                let path = met.path.map(|path| [path, vec![name.to_owned()]].concat());
                Met { shape: Shape::Any, path }
            }
            Shape::Object(members) => {
                let path = met.path.map(|mut path| {
                    path.push(name.to_owned());
                    path
                });
                let Some(field) = members.get(name) else {
                    let what = path.map_or_else(|| name.to_owned(), |path| path.join("."));
                    let prefix = what.strip_suffix(name).unwrap_or_default();
                    let hint = suggestion_within(prefix, name, members.keys().map(String::as_str));
                    self.problem(line, format!("`{what}` is not defined{hint}"));
                    return Met::unknown();
                };
                if let Some(path) = path.as_ref().filter(|_| field.optional) {
                    self.unguarded.entry(path.clone()).or_insert(line);
                }
                Met { shape: field.shape.clone(), path }
            }
            other => {
                let hint = match other {
                    Shape::List(_) => "; loop over it, or take one item with `| first`",
                    _ => "",
                };
                self.problem(line, format!("{of} is a {} and has no field `{name}`{hint}", other.noun()));
                Met::unknown()
            }
        }
    }

    fn arguments(&mut self, arguments: &[ast::CallArg<'_>]) {
        for argument in arguments {
            match argument {
                ast::CallArg::Pos(value)
                | ast::CallArg::Kwarg(_, value)
                | ast::CallArg::PosSplat(value)
                | ast::CallArg::KwargSplat(value) => {
                    self.expression(value);
                }
            }
        }
    }

    fn call(&mut self, call: &ast::Call<'_>) -> Met {
        match &call.expr {
            ast::Expr::GetAttr(get) => {
                let met = self.expression(&get.expr);
                if met.shape != Shape::Any {
                    let name = get.name;
                    let noun = met.shape.noun();
                    self.problem(
                        line(get.span()),
                        format!("a {noun} has no method `{name}()`; templates use filters, such as `… | {name}`"),
                    );
                }
            }
            callee => {
                self.expression(callee);
            }
        }
        self.arguments(&call.args);
        Met::unknown()
    }

    fn filter(&mut self, filter: &ast::Filter<'_>, line: usize) -> Met {
        self.known("filter", filter.name, line);
        let met = filter.expr.as_ref().map_or_else(Met::unknown, |expr| self.expression(expr));
        if matches!(filter.name, "default" | "d") {
            self.guarded.extend(met.path.clone());
        }
        self.arguments(&filter.args);
        let attribute = filter.args.iter().find_map(|argument| match argument {
            ast::CallArg::Kwarg("attribute", ast::Expr::Const(value)) => value.value.as_str().map(str::to_owned),
            ast::CallArg::Pos(ast::Expr::Const(value)) if matches!(filter.name, "selectattr" | "rejectattr") => {
                value.value.as_str().map(str::to_owned)
            }
            _ => None,
        });
        let mut attribute_shape = None;
        if let (Some(attribute), Shape::List(item)) = (attribute, &met.shape) {
            for path in attribute.split(',') {
                let mut reached = Met::of((**item).clone());
                for part in path.trim().split('.') {
                    reached = self.member(reached, part, line);
                }
                attribute_shape = Some(reached.shape);
            }
        }
        let shape = match (filter.name, met.shape) {
            ("map", Shape::List(_)) => Shape::List(Box::new(attribute_shape.unwrap_or(Shape::Any))),
            ("first" | "last" | "min" | "max", Shape::List(item)) => *item,
            (
                "sort" | "list" | "reverse" | "unique" | "select" | "reject" | "selectattr" | "rejectattr",
                Shape::List(item),
            ) => Shape::List(item),
            ("length" | "count" | "int" | "float" | "round" | "abs", _) => Shape::Number,
            (
                "upper" | "lower" | "title" | "capitalize" | "trim" | "replace" | "join" | "string" | "tojson"
                | "indent",
                _,
            ) => Shape::Text,
            _ => Shape::Any,
        };
        Met::of(shape)
    }

    /// The engine resolves filters and tests at run time; here an unknown one is found at once.
    fn known(&mut self, kind: &'static str, name: &str, line: usize) {
        let exists = self
            .environment
            .compile_expression(if kind == "filter" { "name is filter" } else { "name is test" })
            .and_then(|expression| expression.eval(Value::from_pairs([("name", Value::from(name))])))
            .is_ok_and(|exists| exists.is_true());
        if !exists {
            let common: &[&str] = if kind == "filter" {
                &[
                    "default", "first", "indent", "int", "join", "last", "length", "list", "lower", "map", "replace",
                    "round", "sort", "title", "tojson", "trim", "upper",
                ]
            } else {
                &["defined", "undefined", "none", "string", "number", "in", "eq", "ne", "odd", "even"]
            };
            let hint = nearest(name, common.iter().copied())
                .map(|meant| format!("; did you mean `{meant}`?"))
                .unwrap_or_default();
            self.problem(line, format!("there is no {kind} `{name}`{hint}"));
        }
    }
}

fn constant(value: &Value) -> Shape {
    if value.as_str().is_some() {
        Shape::Text
    } else if value.is_number() {
        Shape::Number
    } else {
        Shape::Any
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
