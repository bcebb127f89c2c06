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
	t, err := time.Parse(timeLayout, string(raw))
	if err != nil || !plain || t.Format(timeLayout) != string(raw) {
		r.Fail(field, "not a time in the form "+timeLayout)
		return time.Time{}
	}
	return t
}
