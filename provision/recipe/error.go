package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error is one thing that is wrong in a recipe or in the build that it names.
// A command that meets one ends with exit code 2.
type Error struct {
	File    string // as the caller named it
	Line    int    // from 1; 0 when the place has no line
	Field   string // path of the field: images[1].offset; empty for the file as a whole
	Problem string // what is wrong
	Fix     string // what to write instead
}

// Error gives "file:line: field: problem; fix".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Problem)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// Errors is everything that is wrong in one file, in the order of its lines.
// errors.As finds the first *Error in it.
type Errors []*Error

// Error gives one line per error.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the errors one by one.
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, one := range e {
		list[i] = one
	}
	return list
}

// problems collects the errors of one file.
type problems struct {
	file string
	list Errors
}

func (p *problems) add(line int, field, problem, fix string) {
	p.list = append(p.list, &Error{File: p.file, Line: line, Field: field, Problem: problem, Fix: fix})
}

// err gives the collected errors, or nil.
func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	return p.list
}

// quote shows a value from a file: escaped and not longer than a line.
func quote(s string) string { return strconv.Quote(clip(s)) }

// clip keeps a value from filling the screen.
func clip(s string) string {
	const most = 60
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return s
}

// keyPath is the path of a key inside a mapping. Odd keys are quoted.
func keyPath(parent, key string) string {
	simple := key != "" && len(key) <= 40
	for _, r := range key {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' {
			simple = false
		}
	}
	if !simple {
		key = quote(key)
	}
	if parent == "" {
		return key
	}
	return parent + "." + key
}

func indexPath(parent string, i int) string { return fmt.Sprintf("%s[%d]", parent, i) }
