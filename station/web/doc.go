// Package web owns the screens of a station: the pages for operators, engineers
// and auditors, the JSON API with its OpenAPI file, the event streams, the
// metrics and the health checks.
//
// What it promises:
//
//   - Nobody who looks makes a worker wait: a viewer's place in the stream is one
//     number, and a viewer who is slow sees less, but never something old as new.
//   - A key is not within reach: what comes here are views, reports and
//     certificates. A test walks all types that handlers see.
//   - Every input is bounded, in bytes and in time.
//   - The pages need no other server, no script inside a page, and work in their
//     main parts without scripts.
package web
