//! Maps and gates: loader, typed maps, events.
