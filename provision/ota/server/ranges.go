package server

import (
	"fmt"
	"net/http"
	"strings"
)

// rangesAsRFC makes of a request's Range what http.ServeContent answers as RFC 9110
// has it. ServeContent takes a range for HEAD (14.2: only GET has one), refuses units
// that it does not know (14.2: they are ignored), answers 206 with nothing to the last
// 0 bytes (14.1.2: not satisfiable), and refuses positions beyond 63 bits. Several
// ranges get the whole, which 14.2 leaves to the server.
func rangesAsRFC(r *http.Request, size int64) {
	v := r.Header.Get("Range")
	if v == "" {
		return
	}
	unit, set, ok := strings.Cut(v, "=")
	if r.Method != http.MethodGet || !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || strings.TrimSpace(set) == "" || strings.Contains(set, ",") || len(r.Header["Range"]) > 1 {
		r.Header.Del("Range")
		return
	}
	const most = 18 // digits that fit in 63 bits for sure
	first, last, ok := strings.Cut(strings.Trim(set, " \t"), "-")
	first, last = number(first), number(last)
	beyond := fmt.Sprintf("%d-", size)
	switch {
	case !ok || first == noNumber || last == noNumber:
		set = noNumber // ServeContent refuses it; it would take +1
	case first == "" && last == "0" || len(first) > most && last == "":
		set = beyond
	case first == "" && len(last) > most:
		set = "0-"
	case len(first) > most && (len(last) > len(first) || len(last) == len(first) && last >= first):
		set = beyond
	case first != "" && len(first) <= most && len(last) > most:
		set = first + "-"
	}
	r.Header.Set("Range", "bytes="+set)
}

// noNumber is what number gives for something else.
const noNumber = "?"

// number takes leading zeros from digits. No digits are none.
func number(s string) string {
	if s = strings.Trim(s, " \t"); s == "" {
		return ""
	}
	if strings.Trim(s, "0123456789") != "" {
		return noNumber
	}
	if s = strings.TrimLeft(s, "0"); s == "" {
		return "0"
	}
	return s
}
