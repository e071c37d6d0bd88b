//! Pure: cumulative counters in; windows, rates, quantiles and coverage out.
