//! Plain HTTP for operators of the system: /metrics, /healthz, /readyz; never a metrics API.
