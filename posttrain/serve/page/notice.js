// What went wrong, in words, beside the field that it is about and with a way to go on.

export class Notice {
  constructor(form, box, onRetry) {
    this.form = form;
    this.box = box;
    this.words = box.querySelector("p");
    this.retry = box.querySelector("button");
    this.countdown = null;
    this.retry.addEventListener("click", onRetry);
  }

  show(error) {
    this.box.hidden = false;
    this.words.textContent = error.message;
    const field = this.form.elements[error.field];
    if (field) {
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-errormessage", this.words.id);
      field.focus();
    }
    this.retry.hidden = error.retryAfter === null;
    if (error.retryAfter !== null) this.wait(error.retryAfter);
  }

  wait(seconds) {
    this.retry.disabled = seconds > 0;
    this.retry.textContent = seconds > 0 ? `Run again in ${seconds} s` : "Run again";
    if (seconds > 0) this.countdown = setTimeout(() => this.wait(seconds - 1), 1000);
  }

  hide() {
    clearTimeout(this.countdown);
    this.box.hidden = true;
    for (const field of this.form.elements) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-errormessage");
    }
  }
}
