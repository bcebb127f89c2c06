package canon

import "time"

// timeLayout is RFC 3339 in UTC with exactly nine digits of a second, so that
// texts sort as their times do.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// ValidTime reports whether t has a canonical text: a year with four digits.
func ValidTime(t time.Time) bool {
	y := t.UTC().Year()
	return y >= 0 && y <= 9999
}

// AppendTime appends t, in UTC, as a JSON string.
func AppendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, timeLayout)
	return append(dst, '"')
}

// Time reads what AppendTime writes.
func (r *Reader) Time(field string) time.Time {
	raw, plain := r.rawString(field)
	if r.err != nil {
		return time.Time{}
	}
	t, ok := parseTime(raw)
	if !ok || !plain {
		r.Fail(field, "not a time in the form "+timeLayout)
		return time.Time{}
	}
	return t
}

// parseTime reads the fixed layout. time.Parse would take other forms too, and
// time.
func parseTime(b []byte) (t time.Time, ok bool) {
	if len(b) != len(timeLayout) || b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' || b[19] != '.' || b[29] != 'Z' {
		return time.Time{}, false
	}
	ok = true
	number := func(from, to int) (n int) {
		for _, c := range b[from:to] {
			ok = ok && c >= '0' && c <= '9'
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), number(5, 7), number(8, 10)
	hour, minute, second, nano := number(11, 13), number(14, 16), number(17, 19), number(20, 29)
	if !ok || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	t = time.Date(year, time.Month(month), day, hour, minute, second, nano, time.UTC)
	return t, t.Day() == day // 31 February is in March
}
