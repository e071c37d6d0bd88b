//! What a request asks for in its URL's query, as metav1.ListOptions and the metrics groups have it. Knows no
//! metric and no selector.

use axum::http::Uri;

use super::status::Failure;

/// What a request asks for besides its path, as metav1.ListOptions and the metrics groups' own options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    parameters: Vec<(String, String)>,
}

impl Options {
    /// Reads the query of a URL as Go does: plus is a space, of a repeated parameter the first one counts.
    pub fn read(uri: &Uri) -> Result<Self, Failure> {
        let parameters = axum::extract::Query::try_from_uri(uri)
            .map_err(|e| Failure::new(400, format!("unable to read the URL's query: {e}")))?
            .0;
        let options = Self { parameters };
        for number in ["limit", "timeoutSeconds"] {
            let text = options.get(number);
            if !text.is_empty() && text.parse::<i64>().is_err() {
                return Err(Failure::new(
                    400,
                    format!("{number} {text:?} is not a number"),
                ));
            }
        }
        // A watch that begins with what is there, from any version, names none.
        if !options.get("resourceVersionMatch").is_empty()
            && options.get("resourceVersion").is_empty()
            && !options.watch()
        {
            let message = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(Failure::new(422, message));
        }
        if !options.get("sendInitialEvents").is_empty() && !options.watch() {
            let message = "sendInitialEvents is forbidden for list";
            return Err(Failure::new(422, message));
        }
        Ok(options)
    }

    /// A parameter, empty if it is absent.
    pub fn get(&self, name: &str) -> &str {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// Whether a stream of changes is wanted.
    pub fn watch(&self) -> bool {
        self.is_true("watch")
    }

    /// As Kubernetes reads booleans in a URL: anything but 0 and false is true, also nothing.
    pub fn is_true(&self, name: &str) -> bool {
        let value = self.parameters.iter().find(|(key, _)| key == name);
        value.is_some_and(|(_, v)| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// Refuses what lists of values can not do: streams, fields, pages.
    pub fn only_list(&self, resource: &str) -> Result<(), Failure> {
        if self.watch() {
            let message = format!("watch is not supported on resources of kind \"{resource}\"");
            return Err(Failure::new(405, message));
        }
        if !self.get("fieldSelector").is_empty() {
            let message = format!("{resource} have no fields to select by");
            return Err(Failure::new(400, message));
        }
        if !self.get("continue").is_empty() {
            let message = "continue key is not valid: lists here are always whole";
            return Err(Failure::new(400, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str) -> Result<Options, u16> {
        Options::read(&format!("/apis?{query}").parse().unwrap()).map_err(|f| f.code)
    }

    #[test]
    fn options_are_read_as_go_reads_them() {
        let read = options("labelSelector=a+in+%28b%29&labelSelector=c&limit=500&pretty").unwrap();
        assert_eq!(read.get("labelSelector"), "a in (b)");
        assert_eq!((read.get("pretty"), read.get("nothing")), ("", ""));
        for (query, watch) in [
            ("", false),
            ("watch", true),
            ("watch=true", true),
            ("watch=1", true),
            ("watch=0", false),
            ("watch=False", false),
        ] {
            assert_eq!(options(query).unwrap().watch(), watch, "{query}");
        }
    }

    #[test]
    fn what_a_list_can_not_do_is_refused() {
        for (query, code) in [
            ("limit=ten", 400),
            ("timeoutSeconds=soon", 400),
            ("resourceVersionMatch=Exact", 422),
            ("sendInitialEvents=true", 422),
            ("watch=true&sendInitialEvents=true", 405),
            ("watch", 405),
            ("fieldSelector=a%3Db", 400),
            ("continue=abc", 400),
        ] {
            let refused = options(query).and_then(|o| o.only_list("x").map_err(|f| f.code));
            assert_eq!(refused, Err(code), "{query}");
        }
        let usual = "limit=500&resourceVersion=0&resourceVersionMatch=NotOlderThan";
        options(usual).unwrap().only_list("x").unwrap();
    }
}
