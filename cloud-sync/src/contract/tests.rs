//! Golden bytes: what each message looks like on the wire. A change here breaks devices in the field.
