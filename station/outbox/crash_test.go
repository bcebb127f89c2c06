package outbox

const childDir = "PROVISIOND_OUTBOX_CHILD"

func child(string) {}
