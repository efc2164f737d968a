/** A function of the front end's own that is followed by one of ours. No side effects on import. */

/** Have `more` called after the method `name` of `owner`, if it has one, with the same arguments. */
export function chain(owner, name, more) {
  const before = owner[name];
  owner[name] = function (...given) {
    const answer = before?.apply(this, given);
    more(...given);
    return answer;
  };
}
