// Package arch owns the rules that hold the module's packages apart: who may
// import whom, that every package says what it owns, and that an exported API
// which a backend in another module needs carries nothing that it cannot name.
//
// The rules are a table in its tests, and its tests hold the module to it.
// .golangci.yml repeats the imports for editors; a test keeps the two the same.
package arch
